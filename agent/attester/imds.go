package attester

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

// imdsHost is Azure's metadata service, the same address in every guest: Microsoft,
// "Azure Instance Metadata Service".
const imdsHost = "http://169.254.169.254"

// Bounds on the service.
const (
	imdsTimeout  = 20 * time.Second // of one request
	imdsAttempts = 4
	maxMetadata  = 64 << 10 // bytes; a certificate with its chain has 6 KiB, a quote 7 KiB
)

// metadata asks Azure's metadata service. What it answers is the host's word: a
// verifier checks it.
type metadata struct {
	client *http.Client
	pause  time.Duration // before the second attempt, then twice as long each time
}

// newMetadata uses c, nil: a client of its own, which asks no proxy. The service sends
// nobody elsewhere.
func newMetadata(c *http.Client) metadata {
	own := http.Client{Transport: &http.Transport{DisableKeepAlives: true, MaxResponseHeaderBytes: maxMetadata}}
	if c != nil {
		own = *c
	}
	own.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	own.Timeout = imdsTimeout
	return metadata{&own, time.Second}
}

// vcek returns the certificate of the processor's key, DER.
func (m metadata) vcek(ctx context.Context) ([]byte, error) {
	var answer struct {
		VCEK string `json:"vcekCert"` // PEM
	}
	if err := m.ask(ctx, http.MethodGet, "/metadata/THIM/amd/certification", nil, &answer); err != nil {
		return nil, err
	}
	block, _ := pem.Decode([]byte(answer.VCEK))
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, errors.New("vcekCert: no certificate")
	}
	return block.Bytes, nil
}

// tdQuote has a TD report signed.
func (m metadata) tdQuote(ctx context.Context, report []byte) ([]byte, error) {
	body, err := json.Marshal(map[string]string{"report": base64.RawURLEncoding.EncodeToString(report)})
	if err != nil {
		return nil, err
	}
	var answer struct {
		Quote string `json:"quote"`
	}
	if err := m.ask(ctx, http.MethodPost, "/acc/tdquote", body, &answer); err != nil {
		return nil, err
	}
	quote, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(answer.Quote, "="))
	if err == nil && len(quote) == 0 {
		err = errors.New("empty")
	}
	if err != nil {
		return nil, fmt.Errorf("quote: %w", err)
	}
	return quote, nil
}

// ask asks again where the service says that it may work later: 410 while it is
// updated, 429 above a few requests a second, 5xx.
func (m metadata) ask(ctx context.Context, method, path string, body []byte, answer any) error {
	pause := m.pause
	for attempt := 1; ; attempt++ {
		again, err := m.once(ctx, method, path, body, answer)
		if err == nil || !again || attempt == imdsAttempts {
			return err
		}
		select {
		case <-ctx.Done():
			return errors.Join(err, ctx.Err())
		case <-time.After(pause):
			pause *= 2
		}
	}
}

func (m metadata) once(ctx context.Context, method, path string, body []byte, answer any) (again bool, err error) {
	req, err := http.NewRequestWithContext(ctx, method, imdsHost+path, bytes.NewReader(body))
	if err != nil {
		return false, err
	}
	req.Header.Set("Metadata", "true")
	req.Header.Set("Accept", "application/json")
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	rsp, err := m.client.Do(req)
	if err != nil {
		return ctx.Err() == nil, err
	}
	defer rsp.Body.Close()
	if rsp.StatusCode != http.StatusOK {
		again := rsp.StatusCode == http.StatusGone || rsp.StatusCode == http.StatusTooManyRequests || rsp.StatusCode >= 500
		return again, fmt.Errorf("%s: status %d", path, rsp.StatusCode)
	}
	b, err := io.ReadAll(io.LimitReader(rsp.Body, maxMetadata+1))
	if err == nil && len(b) > maxMetadata {
		err = fmt.Errorf("%s: more than %d bytes", path, maxMetadata)
	}
	if err != nil {
		return false, err
	}
	if err := json.Unmarshal(b, answer); err != nil {
		return false, fmt.Errorf("%s: %w", path, err)
	}
	return false, nil
}
