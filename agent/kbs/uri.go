package kbs

import (
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
)

// PluginResource gives what was stored under three names. Other plugins of a broker
// make what they give.
const PluginResource = "resource"

// maxURI is far above what any name needs.
const maxURI = 2048

// A URI names something that a broker has:
// "kbs[+PLUGIN]://[HOST[:PORT]]/REPOSITORY/TYPE/TAG[?QUERY]". guest-components,
// attestation-agent/docs/KBS_URI.md.
type URI struct {
	Plugin string // PluginResource when the URI names none
	Broker string // "host" or "host:port", lower case; "": the guest's first

	Repository, Type, Tag string
	Query                 string // as it stands, without "?"
}

// The characters that Trustee's resource plugin takes, and no escapes: one name has
// one spelling. A segment with a leading dot is none, so there are no ways upwards.
var (
	uriSegment = regexp.MustCompile(`^[A-Za-z0-9_-][A-Za-z0-9_.-]*$`)
	uriPlugin  = regexp.MustCompile(`^[a-z0-9][a-z0-9.-]*$`)
	uriQuery   = regexp.MustCompile(`^[A-Za-z0-9_.~=&%+:,-]+$`)
	uriHost    = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*$`)
)

// ParseURI reads a URI. What String returns of the result is the same name again.
func ParseURI(s string) (URI, error) {
	u, err := parseURI(s)
	if err != nil {
		return URI{}, fmt.Errorf("kbs: URI %.200q: %w", s, err)
	}
	return u, nil
}

func parseURI(s string) (URI, error) {
	if len(s) > maxURI {
		return URI{}, fmt.Errorf("%d bytes, want at most %d", len(s), maxURI)
	}
	scheme, rest, ok := strings.Cut(s, "://")
	plugin, err := uriScheme(scheme)
	if !ok || err != nil {
		return URI{}, fmt.Errorf("want \"kbs:///REPOSITORY/TYPE/TAG\"%s", because(err))
	}
	rest, query, hasQuery := strings.Cut(rest, "?")
	if hasQuery && !uriQuery.MatchString(query) {
		return URI{}, fmt.Errorf("query %.100q: want key=value, with & between", query)
	}
	broker, path, ok := strings.Cut(rest, "/")
	if broker, err = uriBroker(broker); err != nil {
		return URI{}, err
	}
	seg := strings.Split(path, "/")
	if !ok || len(seg) != 3 {
		return URI{}, fmt.Errorf("%d names, want REPOSITORY/TYPE/TAG", len(seg))
	}
	for _, p := range seg {
		if !uriSegment.MatchString(p) {
			return URI{}, fmt.Errorf("name %.100q: want letters, digits, and \"_-.\", no dot first", p)
		}
	}
	return URI{plugin, broker, seg[0], seg[1], seg[2], query}, nil
}

func because(err error) string {
	if err == nil {
		return ""
	}
	return ": " + err.Error()
}

func uriScheme(s string) (string, error) {
	if s == "kbs" {
		return PluginResource, nil
	}
	plugin, ok := strings.CutPrefix(s, "kbs+")
	if !ok {
		return "", fmt.Errorf("scheme %.100q", s)
	}
	if !uriPlugin.MatchString(plugin) {
		return "", fmt.Errorf("plugin %.100q", plugin)
	}
	return plugin, nil
}

// uriBroker checks "host", "host:port", "[address]" and "[address]:port", and returns
// it in the one spelling that brokers are compared by.
func uriBroker(s string) (string, error) {
	if s == "" {
		return "", nil
	}
	host, port := strings.ToLower(s), ""
	if i := strings.LastIndexByte(host, ':'); i >= 0 && !strings.HasSuffix(host, "]") {
		host, port = host[:i], host[i+1:]
		if n, err := strconv.Atoi(port); err != nil || n < 1 || n > 65535 || strconv.Itoa(n) != port {
			return "", fmt.Errorf("broker %.100q: port: want 1 to 65535", s)
		}
	}
	if inner, ok := strings.CutPrefix(host, "["); ok {
		a, err := netip.ParseAddr(strings.TrimSuffix(inner, "]"))
		if err != nil || !a.Is6() || a.Zone() != "" || !strings.HasSuffix(inner, "]") {
			return "", fmt.Errorf("broker %.100q: want HOST[:PORT]", s)
		}
		host = "[" + a.String() + "]"
	} else if !uriHost.MatchString(host) {
		return "", fmt.Errorf("broker %.100q: want HOST[:PORT]", s)
	}
	if port == "" {
		return host, nil
	}
	return host + ":" + port, nil
}

// String writes u as ParseURI reads it.
func (u URI) String() string {
	s := "kbs"
	if u.Plugin != "" && u.Plugin != PluginResource {
		s += "+" + u.Plugin
	}
	s += "://" + u.Broker + u.path()
	if u.Query != "" {
		s += "?" + u.Query
	}
	return s
}

func (u URI) path() string { return "/" + u.Repository + "/" + u.Type + "/" + u.Tag }

// endpoint is "host:port" with the port that a scheme means.
func endpoint(hostport, scheme string) string {
	if _, _, err := net.SplitHostPort(hostport); err == nil {
		return hostport
	}
	if scheme == "http" {
		return hostport + ":80"
	}
	return hostport + ":443"
}
