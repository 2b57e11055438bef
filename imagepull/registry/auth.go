package registry

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/distribution/reference"
)

// Credentials are a user's at a registry.
type Credentials struct {
	User, Password string
	Token          string // refresh token of OAuth 2, in the place of the two
}

// An AuthFile has credentials by host, or host and path: containers-auth.json(5).
type AuthFile struct {
	by map[string]Credentials
	// Helpers are the hosts for which the file names a program. None is run: a
	// guest has none, and the host's user would not expect it.
	Helpers []string
}

const dockerHub = "docker.io"

// ParseAuthFile reads auth.json, or config.json of Docker.
func ParseAuthFile(b []byte) (*AuthFile, error) {
	if len(b) > maxConf {
		return nil, fmt.Errorf("auth file: %d bytes: want at most %d", len(b), maxConf)
	}
	var v struct {
		Auths map[string]struct {
			Auth  string `json:"auth"`
			Token string `json:"identitytoken"`
		} `json:"auths"`
		Helpers map[string]string `json:"credHelpers"`
	}
	if err := json.Unmarshal(b, &v); err != nil {
		return nil, fmt.Errorf("auth file: %w", err)
	}
	a := &AuthFile{by: map[string]Credentials{}}
	exact := map[string]bool{}
	for _, key := range slices.Sorted(maps.Keys(v.Auths)) {
		e := v.Auths[key]
		if e.Auth == "" && e.Token == "" {
			continue // a helper has them, which is not run
		}
		c, err := credentials(e.Auth)
		if err != nil {
			return nil, fmt.Errorf("auth file: %s: %w", key, err)
		}
		c.Token = e.Token
		// Keys written as URLs, by old programs, stand behind those that are not.
		name := normalized(key)
		if _, there := a.by[name]; !there || name == key && !exact[name] {
			a.by[name], exact[name] = c, name == key
		}
	}
	for host := range v.Helpers {
		a.Helpers = append(a.Helpers, host)
	}
	return a, nil
}

// credentials decodes base64 of "user:password".
func credentials(text string) (Credentials, error) {
	if text == "" {
		return Credentials{}, nil
	}
	b, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return Credentials{}, fmt.Errorf("auth: want base64")
	}
	user, password, ok := strings.Cut(string(b), ":")
	if !ok {
		return Credentials{}, fmt.Errorf("auth: want base64 of user:password")
	}
	return Credentials{User: user, Password: strings.TrimRight(password, "\x00")}, nil
}

// normalized takes scheme and API version off a key, and calls Docker's registry
// by its one name.
func normalized(key string) string {
	host, url := key, false
	for _, scheme := range []string{"https://", "http://"} {
		if rest, ok := strings.CutPrefix(host, scheme); ok {
			host, url = rest, true
		}
	}
	if url {
		host, _, _ = strings.Cut(host, "/")
	}
	host = strings.TrimRight(host, "/")
	switch host {
	case "index.docker.io", "registry-1.docker.io":
		return dockerHub
	}
	return host
}

// For returns the credentials for a repository: those of the longest path that the
// file has. A nil file has none.
func (a *AuthFile) For(ref reference.Named) (Credentials, bool) {
	if a == nil {
		return Credentials{}, false
	}
	for name := ref.Name(); ; {
		if c, ok := a.by[name]; ok {
			return c, true
		}
		i := strings.LastIndexByte(name, '/')
		if i < 0 {
			return Credentials{}, false
		}
		name = name[:i]
	}
}
