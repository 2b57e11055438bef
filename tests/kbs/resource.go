package kbs

import (
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/go-jose/go-jose/v4"
)

// A Resource is given to guests that were attested.
type Resource struct {
	Value []byte

	// Registers are the names of reference values that this resource wants besides, as
	// a resource policy would ("tpm_pcr14"). What a resource names so is wanted for the
	// resources that name it alone; the other imported values are wanted of everybody.
	Registers []string
}

// resource is kbs/src/api_server.rs for GET of the plugin with that name. The reason
// of a refusal stands behind KBS's own words.
func (b *Broker) resource(w http.ResponseWriter, r *http.Request) {
	token, err := b.tokenOf(r)
	if err != nil {
		b.refuse(w, http.StatusUnauthorized, "TokenNotFound", "Attestation Token not found")
		return
	}
	claims, teeKey, err := b.checkToken(token)
	if err != nil {
		b.refuse(w, http.StatusUnauthorized, "TokenVerifierError", fmt.Sprintf("Token Verifier error: %v", err))
		return
	}
	path := strings.TrimPrefix(r.URL.Path, prefix+StepResource+"/")
	res, ok := b.Resources[path]
	if !ok {
		b.refuse(w, b.documented(http.StatusNotFound), "PluginInternalError", "Plugin internal error")
		return
	}
	if err := b.policy(res, token, claims); err != nil {
		b.refuse(w, b.documented(http.StatusForbidden), "PolicyDeny", fmt.Sprintf("Access denied by policy: %v", err))
		return
	}
	if b.Faults[StepResource] == FaultOtherKey {
		other := mustKey()
		teeKey = &jose.JSONWebKey{Key: other.Public(), Algorithm: string(jose.ECDH_ES_A256KW)}
	}
	jwe, err := encrypt(teeKey, res.Value)
	if err != nil {
		b.refuse(w, http.StatusUnauthorized, "JweError", "JWE failed")
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Write([]byte(jwe))
}

// documented is the status of kbs.yaml, or KBS's own.
func (b *Broker) documented(status int) int {
	if b.Documented {
		return status
	}
	return http.StatusUnauthorized
}

// tokenOf is get_attestation_token: the session's, or the one that came along.
func (b *Broker) tokenOf(r *http.Request) (string, error) {
	if _, s, err := b.session(r); err == nil && s.token != "" {
		return s.token, nil
	}
	token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok {
		return "", errors.New("parse Authorization header failed")
	}
	return token, nil
}

// encrypt is kbs/src/jwe/mod.rs: the flattened form, by the algorithm that the key
// names.
func encrypt(key *jose.JSONWebKey, value []byte) (string, error) {
	alg := jose.KeyAlgorithm(key.Algorithm)
	if alg != jose.ECDH_ES_A256KW && alg != jose.RSA_OAEP_256 {
		return "", fmt.Errorf("algorithm %q", alg)
	}
	e, err := jose.NewEncrypter(jose.A256GCM, jose.Recipient{Algorithm: alg, Key: key.Key}, nil)
	if err != nil {
		return "", err
	}
	jwe, err := e.Encrypt(value)
	if err != nil {
		return "", err
	}
	return jwe.FullSerialize(), nil
}
