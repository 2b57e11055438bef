package registry

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/distribution/reference"
)

// authorize answers a challenge with what the Authorization header is to hold; ""
// when there is nothing to answer with. RFC 7617; distribution/distribution,
// "Token Authentication Specification".
func (c *Client) authorize(ctx context.Context, ref reference.Named, e endpoint, challenge string) (string, error) {
	cred, known := c.Auth.For(ref)
	scheme, params := parseChallenge(challenge)
	switch scheme {
	case "basic":
		if !known {
			return "", nil
		}
		return basic(cred), nil
	case "bearer":
		token, err := c.token(ctx, e, params, cred, known)
		if err != nil {
			return "", fmt.Errorf("%s: token: %w", e.host, err)
		}
		return "Bearer " + token, nil
	}
	return "", nil
}

func basic(c Credentials) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(c.User+":"+c.Password))
}

// token gets one that may pull from the repository.
func (c *Client) token(ctx context.Context, e endpoint, params map[string]string, cred Credentials, known bool) (string, error) {
	realm, err := url.Parse(params["realm"])
	if err != nil || realm.Host == "" {
		return "", fmt.Errorf("realm %q: want a URL", params["realm"])
	}
	if realm.Scheme != "https" && !e.insecure {
		return "", fmt.Errorf("realm %s: want https", where(realm))
	}
	q := realm.Query()
	q.Set("scope", "repository:"+e.repo+":pull")
	if s := params["service"]; s != "" {
		q.Set("service", s)
	}
	req, err := tokenRequest(ctx, realm, q, cred, known)
	if err != nil {
		return "", err
	}
	resp, err := checked(c.do(e.insecure, req))
	if err != nil {
		return "", err
	}
	b, err := readAll(resp, maxToken)
	if err != nil {
		return "", err
	}
	var v struct {
		Token  string `json:"token"`
		Access string `json:"access_token"`
	}
	if err := json.Unmarshal(b, &v); err != nil {
		return "", errors.New("the answer is no JSON") // it may hold a token
	}
	if v.Token == "" {
		v.Token = v.Access
	}
	if v.Token == "" || strings.ContainsAny(v.Token, "\r\n") {
		return "", errors.New("the answer holds no token")
	}
	return v.Token, nil
}

// tokenRequest asks with user and password, or with a refresh token, or as nobody.
func tokenRequest(ctx context.Context, realm *url.URL, q url.Values, cred Credentials, known bool) (*http.Request, error) {
	if known && cred.Token != "" {
		q.Set("grant_type", "refresh_token")
		q.Set("refresh_token", cred.Token)
		q.Set("client_id", "plinth")
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, realm.String(), strings.NewReader(q.Encode()))
		if err == nil {
			req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		}
		return req, err
	}
	to := *realm
	to.RawQuery = q.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, to.String(), nil)
	if err == nil && known {
		req.Header.Set("Authorization", basic(cred))
	}
	return req, err
}

// parseChallenge reads WWW-Authenticate: RFC 9110, section 11.6.1. The scheme is in
// lower case.
func parseChallenge(s string) (scheme string, params map[string]string) {
	scheme, rest, _ := strings.Cut(strings.TrimSpace(s), " ")
	params = map[string]string{}
	for rest = strings.TrimLeft(rest, " ,"); rest != ""; rest = strings.TrimLeft(rest, " ,") {
		key, value, ok := strings.Cut(rest, "=")
		if !ok {
			break
		}
		if strings.HasPrefix(value, `"`) {
			value, rest, _ = strings.Cut(value[1:], `"`)
		} else {
			value, rest, _ = strings.Cut(value, ",")
		}
		params[strings.ToLower(strings.TrimSpace(key))] = value
	}
	return strings.ToLower(scheme), params
}
