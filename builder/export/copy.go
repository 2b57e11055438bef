package export

import (
	"context"
	"io"
)

// copyContext copies until EOF or the end of ctx.
func copyContext(ctx context.Context, w io.Writer, r io.Reader) error {
	const chunk = 8 << 20 // bytes between two looks at ctx
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		_, err := io.CopyN(w, r, chunk)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
