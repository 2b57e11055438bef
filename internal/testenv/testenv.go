// Package testenv tells tests what the machine has. A test that lacks something
// skips with the reason; where PLINTH_REQUIRE names it, the test fails instead,
// so that a green CI run cannot hide a missing tool.
package testenv

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// Need skips t unless every tool is in PATH or in the directories that Debian
// keeps out of an ordinary user's PATH. PLINTH_REQUIRE is a comma-separated
// list of tools, or "all"; a missing tool that it names fails t.
func Need(t testing.TB, tools ...string) {
	t.Helper()
	for _, tool := range tools {
		if Tool(tool) == "" {
			Missing(t, tool, "not installed")
		}
	}
}

// Tool returns the path of an outside tool, "" when the machine lacks it.
func Tool(name string) string {
	if p, err := exec.LookPath(name); err == nil {
		return p
	}
	for _, dir := range []string{"/usr/sbin", "/sbin", "/usr/lib/systemd", "/lib/systemd"} {
		p := filepath.Join(dir, name)
		if fi, err := os.Stat(p); err == nil && fi.Mode().IsRegular() && fi.Mode()&0o111 != 0 {
			return p
		}
	}
	return ""
}

// Missing skips t for the want of name, or fails it when PLINTH_REQUIRE asks.
func Missing(t testing.TB, name, reason string) {
	t.Helper()
	if Required(name) {
		t.Fatalf("%s: %s, and PLINTH_REQUIRE asks for it", name, reason)
	}
	t.Skipf("%s: %s", name, reason)
}

// Required reports whether PLINTH_REQUIRE names the tool or resource.
func Required(name string) bool {
	for _, r := range strings.Split(os.Getenv("PLINTH_REQUIRE"), ",") {
		if r == name || r == "all" {
			return true
		}
	}
	return false
}

// Vectors returns the folder of published test vectors: PLINTH_VECTORS, by
// default ../shared/vectors beside the checkout. Without it the test skips;
// PLINTH_REQUIRE=vectors makes that a failure.
func Vectors(t testing.TB) string {
	t.Helper()
	dir := os.Getenv("PLINTH_VECTORS")
	if dir == "" {
		dir = filepath.Join(Root(t), "..", "shared", "vectors")
	}
	if _, err := os.Stat(dir); err != nil {
		Missing(t, "vectors", err.Error())
	}
	return dir
}

// Network skips t in -short mode and unless PLINTH_NETWORK is set or
// PLINTH_REQUIRE names "network": a plain "go test" stays off the network.
func Network(t testing.TB) {
	t.Helper()
	if testing.Short() {
		t.Skip("uses the network")
	}
	if os.Getenv("PLINTH_NETWORK") == "" && !Required("network") {
		t.Skip("uses the network; set PLINTH_NETWORK=1")
	}
}

// Root returns the top folder of the checkout.
func Root(t testing.TB) string {
	t.Helper()
	_, file, _, ok := runtime.Caller(0)
	if !ok || !filepath.IsAbs(file) {
		t.Skip("built with -trimpath: the checkout cannot be found")
	}
	return filepath.Join(filepath.Dir(file), "..", "..")
}
