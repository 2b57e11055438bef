package main

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/plinth-os/plinth/imagepull/policy"
	"github.com/plinth-os/plinth/imagepull/store"
)

// imageStore opens the store of images: --store, else beside the store of builds.
func (c *common) imageStore(dir string) (*store.Dir, error) {
	if dir == "" {
		cache, err := c.env.cacheDir(c.cache)
		if err != nil {
			return nil, err
		}
		dir = filepath.Join(cache, "images")
	}
	return store.Open(dir)
}

const storeFlag = "directory of images (default: images in the cache directory)"

func newImageList(c *common) *cobra.Command {
	dir := ""
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "List the images of the store",
		Example: "  plinth image list --json",
		Args:    cobra.NoArgs,
		RunE:    func(*cobra.Command, []string) error { return c.imageList(dir) },
	}
	cmd.Flags().StringVar(&dir, "store", "", storeFlag)
	return cmd
}

func (c *common) imageList(dir string) error {
	st, err := c.imageStore(dir)
	if err != nil {
		return err
	}
	images, err := st.Images()
	if err != nil {
		return err
	}
	if c.json {
		if images == nil {
			images = []store.Image{}
		}
		return printJSON(c.env.stdout, images)
	}
	t := tabwriter.NewWriter(c.env.stdout, 0, 0, 2, ' ', 0)
	for _, im := range images {
		names := strings.Join(im.Names, " ")
		if names == "" {
			names = "(no name)"
		}
		fmt.Fprintf(t, "%s\t%s\t%d layers\t%s\n", names, im.Manifest, len(im.DiffIDs), size(im.Size))
	}
	return t.Flush()
}

func newImageRemove(c *common) *cobra.Command {
	dir := ""
	cmd := &cobra.Command{
		Use:   "rm NAME|DIGEST",
		Short: "Remove an image from the store",
		Long: `Takes the name away; the image goes with its last one, or by the digest of its
manifest at once, and with it the layers that no other image needs. Waits for pulls
to end.`,
		Example: "  plinth image rm docker://registry.example.com/app:1",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, a []string) error {
			st, err := c.imageStore(dir)
			if err != nil {
				return err
			}
			what := a[0]
			if n, err := policy.ParseName(absolute(what)); err == nil {
				what = n.String() // as a pull writes it
			}
			r, err := st.Remove(cmd.Context(), what)
			if errors.Is(err, store.ErrNoImage) {
				return usageError{err}
			}
			if err != nil {
				return err
			}
			return c.printRemoved(r)
		},
	}
	cmd.Flags().StringVar(&dir, "store", "", storeFlag)
	return cmd
}

func newImagePrune(c *common) *cobra.Command {
	dir := ""
	cmd := &cobra.Command{
		Use:   "prune",
		Short: "Remove from the store what nobody needs",
		Long: `Removes images without a name, layers and trees that no image needs, and what
broken pulls left. Waits for pulls to end.`,
		Example: "  plinth image prune",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			st, err := c.imageStore(dir)
			if err != nil {
				return err
			}
			r, err := st.Prune(cmd.Context())
			if err != nil {
				return err
			}
			return c.printRemoved(r)
		},
	}
	cmd.Flags().StringVar(&dir, "store", "", storeFlag)
	return cmd
}

func (c *common) printRemoved(r *store.Removed) error {
	if c.json {
		return printJSON(c.env.stdout, r)
	}
	_, err := fmt.Fprintf(c.env.stdout, "removed %d images, %d trees, %d layers, %d parts: %s\n", len(r.Images), r.Trees, r.Layers, r.Parts, size(r.Bytes))
	return err
}
