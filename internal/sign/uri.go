package sign

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
)

// A tokenURI names a private key in a token: RFC 7512, of which it takes what
// pkcs11-tool can be told. What it cannot is refused: a key that fits half of a
// name is the wrong key.
type tokenURI struct {
	token, object string
	id            []byte
	slot          string
	module        string
	pinSource     string
}

func parseURI(text string) (*tokenURI, error) {
	path, query, _ := strings.Cut(text[len("pkcs11:"):], "?")
	u := &tokenURI{}
	seen := map[string]bool{}
	set := func(pair string, put func(name, value string) error) error {
		name, raw, ok := strings.Cut(pair, "=")
		value, err := url.PathUnescape(raw)
		switch {
		case !ok:
			return fmt.Errorf("%q: want NAME=VALUE", pair)
		case err != nil:
			return fmt.Errorf("%s: %w", name, err)
		case seen[name]:
			return fmt.Errorf("%s is there twice", name)
		}
		seen[name] = true
		return put(name, value)
	}
	for _, pair := range split(path, ";") {
		if err := set(pair, u.setPath); err != nil {
			return nil, err
		}
	}
	for _, pair := range split(query, "&") {
		if err := set(pair, u.setQuery); err != nil {
			return nil, err
		}
	}
	switch {
	case u.token == "" && u.slot == "":
		return nil, errors.New("no token: want token=LABEL")
	case u.token != "" && u.slot != "":
		return nil, errors.New("token and slot-id: want one of them")
	case u.object == "" && len(u.id) == 0:
		return nil, errors.New("no key: want object=LABEL or id=%NN")
	}
	return u, nil
}

func split(s, sep string) []string {
	if s == "" {
		return nil
	}
	return strings.Split(s, sep)
}

func (u *tokenURI) setPath(name, value string) error {
	switch name {
	case "token":
		u.token = value
	case "object":
		u.object = value
	case "id":
		u.id = []byte(value)
	case "slot-id":
		u.slot = value
	case "type":
		if value != "private" {
			return fmt.Errorf("type is %q: want private", value)
		}
	default:
		return fmt.Errorf("%s: not supported: want token, object, id, slot-id", name)
	}
	return nil
}

func (u *tokenURI) setQuery(name, value string) error {
	switch name {
	case "module-path":
		u.module = value
	case "pin-source":
		if strings.HasPrefix(value, "|") {
			return errors.New("pin-source is a command: want a file")
		}
		u.pinSource = strings.TrimPrefix(strings.TrimPrefix(value, "file://"), "file:")
	case "pin-value":
		return errors.New("pin-value: a PIN in an argument is readable by every process: want pin-source=FILE")
	default:
		return fmt.Errorf("%s: not supported: want module-path, pin-source", name)
	}
	return nil
}

// pin returns the PIN of the URI's file, or fallback.
func (u *tokenURI) pin(fallback string) (string, error) {
	pin := fallback
	if u.pinSource != "" {
		b, err := readFile(u.pinSource)
		if err != nil {
			return "", fmt.Errorf("PIN: %w", err)
		}
		pin = strings.TrimRight(string(b), "\r\n")
	}
	if pin == "" || strings.ContainsRune(pin, 0) {
		return "", errNoPIN
	}
	return pin, nil
}

var errNoPIN = errors.New("no PIN")
