// Package api has the interfaces of CoCo's guest components that programs of a guest
// call by ttRPC, as protoc wrote them: of attestation-agent (attestation.proto), and of
// confidential-data-hub (images.proto, secrets.proto, keyprovider.proto).
package api

// protoc 3.21.12, protoc-gen-go v1.36.11 and protoc-gen-go-ttrpc v1.2.10.
//go:generate protoc --go_out=. --go_opt=paths=source_relative --go-ttrpc_out=. --go-ttrpc_opt=paths=source_relative attestation.proto images.proto keyprovider.proto secrets.proto
