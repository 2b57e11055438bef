package source

import (
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/plinth-os/plinth/internal/cas"
)

const (
	defaultAttempts = 4
	defaultStall    = 30 * time.Second
	firstBackoff    = 500 * time.Millisecond
	maxBackoff      = 10 * time.Second
	maxRetryAfter   = 30 * time.Second
)

// Two verdicts of an attempt let the next one go ahead; any other error ends
// the download, because it is this machine's.
type (
	// temporary: the same URL may give the file later.
	temporary struct {
		error
		after time.Duration // what the mirror asked for, 0 if it did not
	}
	// useless: this URL will not give the file.
	useless struct{ error }
)

func (e temporary) Unwrap() error { return e.error }
func (e useless) Unwrap() error   { return e.error }

var errNotFound = errors.New("not found (404)")

// tryMirrors calls attempt for one URL after the other until one succeeds.
// After a round over all that may still give the file it waits, longer each time.
func (c *Client) tryMirrors(ctx context.Context, what string, urls []string, attempt func(ctx context.Context, url string) error) error {
	if c.Offline || len(urls) == 0 {
		return &NetworkError{What: what, Offline: c.Offline}
	}
	last := make([]error, len(urls))
	for round := range or(c.Attempts, defaultAttempts) {
		wait, left := time.Duration(0), false
		for i, u := range urls {
			if errors.As(last[i], new(useless)) {
				continue
			}
			err := attempt(ctx, u)
			if err == nil {
				return nil
			}
			var again temporary
			if errors.As(err, &again) {
				wait, left = max(wait, again.after), true
			} else if !errors.As(err, new(useless)) {
				return err
			}
			last[i] = err
		}
		if !left {
			break
		}
		if round < or(c.Attempts, defaultAttempts)-1 {
			if err := c.sleep(ctx, max(wait, min(firstBackoff<<round, maxBackoff))); err != nil {
				return err
			}
		}
	}
	return mirrorsFailed(what, last)
}

// mirrorsFailed sums the failures up. Bytes that were wrong weigh more than
// bytes that did not come.
func mirrorsFailed(what string, errs []error) error {
	notFound := true
	for _, err := range errs {
		var verify *VerifyError
		if errors.As(err, &verify) {
			return verify
		}
		notFound = notFound && errors.Is(err, errNotFound)
	}
	return &NetworkError{What: what, Errs: errs, NotFound: notFound}
}

func or[T int | time.Duration](v, def T) T {
	if v == 0 {
		return def
	}
	return v
}

func (c *Client) sleep(ctx context.Context, d time.Duration) error {
	if c.sleepFunc != nil {
		return c.sleepFunc(ctx, d)
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// A response is a body on its way. Reading it fails once nothing came for the
// stall time.
type response struct {
	body   io.Reader
	offset int64 // in the file, where the body starts
	size   int64 // of the whole file, -1 when unknown
	close  func()
}

var errStalled = errors.New("stalled")

// get requests url from offset on. A mirror may ignore the offset: see
// response.offset.
func (c *Client) get(ctx context.Context, rawURL string, offset int64) (*response, error) {
	stall := or(c.Stall, defaultStall)
	stalled := fmt.Errorf("%w: no data for %v", errStalled, stall)
	inner, cancel := context.WithCancelCause(ctx)
	watch := time.AfterFunc(stall, func() { cancel(stalled) })
	stop := func() { watch.Stop(); cancel(nil) }

	req, err := http.NewRequestWithContext(inner, http.MethodGet, rawURL, nil)
	if err != nil {
		stop()
		return nil, useless{error: err}
	}
	req.Header.Set("User-Agent", "plinth")
	req.Header.Set("Accept-Encoding", "identity") // digests are over the bytes as stored
	if offset > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", offset))
	}
	res, err := c.http().Do(req)
	if err != nil {
		stop()
		return nil, networkFailure(ctx, inner, err)
	}
	closeAll := func() { stop(); res.Body.Close() }
	r, err := c.readHead(res, offset)
	if err != nil {
		closeAll()
		return nil, fmt.Errorf("%s: %w", req.URL.Redacted(), err)
	}
	r.close = closeAll
	r.body = readerFunc(func(p []byte) (int, error) {
		n, err := res.Body.Read(p)
		watch.Reset(stall)
		if err != nil && err != io.EOF {
			err = fmt.Errorf("%s: %w", req.URL.Redacted(), networkFailure(ctx, inner, err))
		}
		return n, err
	})
	return r, nil
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func (c *Client) http() *http.Client {
	if c.HTTP != nil {
		return c.HTTP
	}
	return http.DefaultClient
}

// networkFailure tells the caller's cancellation, which is final, from a stall
// and from what the network does.
func networkFailure(outer, inner context.Context, err error) error {
	if outer.Err() != nil {
		return outer.Err()
	}
	if cause := context.Cause(inner); errors.Is(cause, errStalled) {
		err = cause
	}
	return temporary{error: err}
}

// readHead judges status and headers of an answer to a request from offset on.
func (c *Client) readHead(res *http.Response, offset int64) (*response, error) {
	switch {
	case res.StatusCode == http.StatusPartialContent && offset > 0:
		var r response
		var last int64
		if n, _ := fmt.Sscanf(res.Header.Get("Content-Range"), "bytes %d-%d/%d", &r.offset, &last, &r.size); n == 2 {
			r.size = -1
		} else if n < 2 {
			return nil, useless{errors.New("answered with a malformed range")}
		}
		if r.offset != offset {
			return nil, useless{fmt.Errorf("answered from offset %d, want %d", r.offset, offset)}
		}
		return &r, nil
	case res.StatusCode == http.StatusOK:
		if kind, _, _ := mime.ParseMediaType(res.Header.Get("Content-Type")); kind == "text/html" && !c.anyType {
			return nil, useless{errWebPage}
		}
		return &response{size: res.ContentLength}, nil
	case res.StatusCode == http.StatusNotFound || res.StatusCode == http.StatusGone:
		return nil, useless{errNotFound}
	case res.StatusCode == http.StatusTooManyRequests || res.StatusCode >= 500:
		return nil, temporary{fmt.Errorf("mirror answered %s", res.Status), retryAfter(res.Header)}
	case res.StatusCode == http.StatusRequestedRangeNotSatisfiable:
		return nil, temporary{error: errBadRange}
	}
	return nil, useless{fmt.Errorf("mirror answered %s", res.Status)}
}

var (
	errWebPage  = errors.New("mirror answered with a web page instead of the file")
	errBadRange = errors.New("mirror cannot continue the download")
)

// retryAfter reads the form of Retry-After that counts seconds; a date would
// need a clock that agrees with the mirror's.
func retryAfter(h http.Header) time.Duration {
	n, err := strconv.ParseUint(h.Get("Retry-After"), 10, 32)
	if err != nil {
		return 0
	}
	return min(time.Duration(n)*time.Second, maxRetryAfter)
}

// fetchSmall gets a file of unknown digest whole; accept judges it; when it
// gives a *VerifyError, the next mirror is asked.
func (c *Client) fetchSmall(ctx context.Context, what string, urls []string, limit int64, accept func([]byte) error) error {
	return c.tryMirrors(ctx, what, urls, func(ctx context.Context, url string) error {
		r, err := c.get(ctx, url, 0)
		if err != nil {
			return err
		}
		defer r.close()
		b, err := io.ReadAll(io.LimitReader(r.body, limit+1))
		if err != nil {
			return err
		}
		if int64(len(b)) > limit {
			return useless{fmt.Errorf("%s: more than %d bytes", redacted(url), limit)}
		}
		if looksLikeWebPage(b) {
			return useless{fmt.Errorf("%s: %w", redacted(url), errWebPage)}
		}
		err = accept(b)
		if errors.As(err, new(*VerifyError)) {
			return useless{err}
		}
		return err
	})
}

func looksLikeWebPage(b []byte) bool {
	head := strings.ToLower(strings.TrimSpace(string(b[:min(len(b), 64)])))
	return strings.HasPrefix(head, "<!doctype html") || strings.HasPrefix(head, "<html")
}

// fetchBlob brings the file that want names into the store. An interrupted
// download goes on where it stopped, in another process too.
func (c *Client) fetchBlob(ctx context.Context, what string, urls []string, want cas.Ref) error {
	if c.Store.Holds(want) {
		return nil
	}
	name := "download " + want.Digest.String()
	unlock, err := c.Store.Lock(ctx, name)
	if err != nil {
		return err
	}
	defer unlock()
	if c.Store.Holds(want) {
		return nil
	}
	return c.tryMirrors(ctx, what, urls, func(ctx context.Context, url string) error {
		return c.download(ctx, what, url, name, want)
	})
}

// download continues the partial file of that name from one URL and puts it into
// the store when it is complete and right.
func (c *Client) download(ctx context.Context, what, url, name string, want cas.Ref) error {
	f, err := os.OpenFile(c.Store.Partial(name), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return fmt.Errorf("source: %w", err)
	}
	defer f.Close()
	have, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return fmt.Errorf("source: %w", err)
	}
	resumed := have > 0
	if have < want.Size || !resumed {
		if err := c.receive(ctx, what, url, f, have, want.Size); err != nil {
			if errors.Is(err, errBadRange) || errors.Is(err, errWrongSize) {
				err = errors.Join(err, f.Truncate(0))
			}
			return err
		}
	}
	err = c.adopt(ctx, what, f, want)
	var wrong *VerifyError
	if err != nil && !errors.As(err, &wrong) {
		return err
	}
	if rmErr := c.Store.RemovePartial(name); rmErr != nil {
		return rmErr
	}
	switch {
	case wrong == nil:
		return nil
	case resumed: // the first part may be another mirror's fault: begin again
		return temporary{error: fmt.Errorf("%s: %w", redacted(url), wrong)}
	}
	wrong.Problem = redacted(url) + ": " + wrong.Problem
	return useless{wrong}
}

var errWrongSize = errors.New("wrong size")

// receive appends to f, which holds have bytes, until it has size bytes.
func (c *Client) receive(ctx context.Context, what, url string, f *os.File, have, size int64) error {
	r, err := c.get(ctx, url, have)
	if err != nil {
		return err
	}
	defer r.close()
	if r.size >= 0 && r.size != size {
		head, _ := io.ReadAll(io.LimitReader(r.body, 64))
		if r.offset == 0 && looksLikeWebPage(head) {
			return useless{fmt.Errorf("%s: %w", redacted(url), errWebPage)}
		}
		return sizeError(what, url, r.size, size)
	}
	if err := errors.Join(f.Truncate(r.offset), seek(f, r.offset)); err != nil {
		return fmt.Errorf("source: %w", err)
	}
	buf := make([]byte, 256<<10)
	for at := r.offset; ; {
		n, readErr := r.body.Read(buf)
		if at+int64(n) > size {
			return sizeError(what, url, -1, size)
		}
		if _, err := f.Write(buf[:n]); err != nil {
			return fmt.Errorf("source: %w", err)
		}
		at += int64(n)
		if c.Progress != nil {
			c.Progress(Progress{Name: what, Done: at, Total: size})
		}
		if readErr == io.EOF && at < size {
			return temporary{error: fmt.Errorf("%s: truncated: %d of %d bytes", redacted(url), at, size)}
		}
		if readErr == io.EOF {
			return nil
		}
		if readErr != nil {
			return readErr
		}
	}
}

func seek(f *os.File, off int64) error {
	_, err := f.Seek(off, io.SeekStart)
	return err
}

// sizeError says that the mirror has a file of another size; got is -1 when it
// only proved to be longer.
func sizeError(what, url string, got, want int64) error {
	problem := fmt.Sprintf("%s: size is %d bytes, want %d", redacted(url), got, want)
	if got < 0 {
		problem = fmt.Sprintf("%s: more than the %d bytes that it should have", redacted(url), want)
	}
	return useless{errors.Join(errWrongSize, &VerifyError{What: what, Problem: problem})}
}

// adopt moves the bytes of f into the store when they are what want says.
func (c *Client) adopt(ctx context.Context, what string, f *os.File, want cas.Ref) error {
	if err := seek(f, 0); err != nil {
		return fmt.Errorf("source: %w", err)
	}
	_, err := c.Store.PutReader(ctx, newVerifier(f, want, what))
	return err
}

// redacted hides a password in a URL.
func redacted(rawURL string) string {
	u, err := url.Parse(rawURL)
	if err != nil {
		return "malformed URL"
	}
	return u.Redacted()
}
