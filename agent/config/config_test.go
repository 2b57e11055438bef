package config

import (
	"bytes"
	"reflect"
	"strings"
	"testing"
)

// sample is a configuration with every field set.
func sample() *Config {
	return &Config{
		Schema:     Schema,
		Cmdline:    "lockdown=integrity console=tty0",
		Modules:    []Module{{Path: "/usr/lib/plinth/modules/virtio_blk.ko"}, {Path: "/usr/lib/plinth/modules/tpm-tis.ko", Params: "force=1 itpm=0"}},
		Phases:     []string{EnterInitrd, LeaveInitrd, SysInit, Ready},
		Services:   []Service{{Name: "echo", Exec: []string{"/usr/bin/echo", "<&>", ""}, Env: map[string]string{"B": "2", "A": "1"}, Restart: true}},
		ReportPort: "org.example.port",
		Extra:      map[string]string{"os-release": strings.Repeat("0a", 32), "tpm2-pcr-signature.json": AnyContent},
		FWCfg:      true,
		Debug:      true,
		Shell:      "/usr/lib/plinth/shell",
		OnFailure:  Reboot,
	}
}

// The document as it is written: a change here is a change of every image.
const golden = `{
  "schema": 1,
  "cmdline": "lockdown=integrity console=tty0",
  "modules": [
    {
      "path": "/usr/lib/plinth/modules/virtio_blk.ko"
    },
    {
      "path": "/usr/lib/plinth/modules/tpm-tis.ko",
      "params": "force=1 itpm=0"
    }
  ],
  "phases": [
    "enter-initrd",
    "leave-initrd",
    "sysinit",
    "ready"
  ],
  "services": [
    {
      "name": "echo",
      "exec": [
        "/usr/bin/echo",
        "<&>",
        ""
      ],
      "env": {
        "A": "1",
        "B": "2"
      },
      "restart": true
    }
  ],
  "report_port": "org.example.port",
  "extra": {
    "os-release": "0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a",
    "tpm2-pcr-signature.json": "any"
  },
  "fw_cfg": true,
  "debug": true,
  "shell": "/usr/lib/plinth/shell",
  "on_failure": "reboot"
}
`

func TestGolden(t *testing.T) {
	b, err := sample().Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if string(b) != golden {
		t.Errorf("got:\n%s\nwant:\n%s", b, golden)
	}
	c, err := Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(c, sample()) {
		t.Errorf("got %+v, want %+v", c, sample())
	}
}

// Little is needed, and no phase is made up for one that is not listed.
func TestMinimal(t *testing.T) {
	c, err := Parse([]byte(`{"schema":1,"cmdline":""}`))
	if err != nil {
		t.Fatal(err)
	}
	if want := (&Config{Schema: 1}); !reflect.DeepEqual(c, want) {
		t.Errorf("got %+v, want %+v", c, want)
	}
}

func TestParseIsStrict(t *testing.T) {
	for _, tt := range []struct{ name, in, want string }{
		{"unknown key", `{"schema":1,"cmdline":"","debgu":true}`, "config: debgu: unknown key"},
		{"key in capitals", `{"schema":1,"cmdline":"","Debug":true}`, "config: Debug: unknown key"},
		{"unknown key below", `{"schema":1,"services":[{"name":"a","exec":["/a"],"user":"x"}]}`, "services[0].user: unknown key"},
		{"duplicate key", `{"schema":1,"cmdline":"a","cmdline":"b"}`, "config: cmdline: duplicate key"},
		{"duplicate variable", `{"schema":1,"services":[{"name":"a","exec":["/a"],"env":{"A":"1","A":"2"}}]}`, "services[0].env.A: duplicate key"},
		{"data behind", `{"schema":1,"cmdline":""}` + "\n{}", "data after the document"},
		{"no schema", `{"cmdline":""}`, "schema is 0, want 1"},
		{"other schema", `{"schema":2,"cmdline":""}`, "schema is 2, want 1"},
		{"empty", ``, "unexpected EOF"},
		{"truncated", golden[:len(golden)/2], "EOF"},
		{"too large", golden + strings.Repeat(" ", MaxSize), "want at most"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Parse([]byte(tt.in))
			wantError(t, err, tt.want)
		})
	}
}

func TestRefuses(t *testing.T) {
	for _, tt := range []struct {
		name, want string
		change     func(*Config)
	}{
		{"cmdline of two lines", "cmdline", func(c *Config) { c.Cmdline = "a\nb" }},
		{"cmdline with a NUL", "cmdline", func(c *Config) { c.Cmdline = "a\x00b" }},
		{"cmdline in another encoding", "cmdline", func(c *Config) { c.Cmdline = "a\xffb" }},
		{"bootconfig", "end of the initrd", func(c *Config) { c.Cmdline = "quiet bootconfig panic=-1" }},
		{"bootconfig with a value", "end of the initrd", func(c *Config) { c.Cmdline = "bootconfig=x" }},
		{"bootconfig in quotes", "end of the initrd", func(c *Config) { c.Cmdline = `"bootconfig"` }},
		{"relative module", "modules[0]", func(c *Config) { c.Modules[0].Path = "virtio_blk.ko" }},
		{"module path with ..", "modules[0]", func(c *Config) { c.Modules[0].Path = "/lib/../virtio_blk.ko" }},
		{"compressed module", "modules[0]", func(c *Config) { c.Modules[0].Path += ".xz" }},
		{"module without a name", "modules[0]", func(c *Config) { c.Modules[0].Path = "/lib/.ko" }},
		{"module twice", "tpm_tis: twice", func(c *Config) { c.Modules[0].Path = "/other/tpm_tis.ko" }},
		{"NUL in parameters", "modules[1]: params", func(c *Config) { c.Modules[1].Params = "a\x00" }},
		{"fw_cfg not asked for", "want fw_cfg beside it", func(c *Config) { c.FWCfg = false; c.Modules[0].Path = "/m/qemu_fw_cfg.ko" }},
		{"fw_cfg not asked for, with hyphens", "want fw_cfg beside it", func(c *Config) { c.FWCfg = false; c.Modules[0].Path = "/m/qemu-fw-cfg.ko" }},
		{"unknown wish for a TPM", `tpm: "maybe"`, func(c *Config) { c.TPM = "maybe" }},
		{"phases without a TPM", "want none where the TPM is optional", func(c *Config) { c.TPM = TPMOptional }},
		{"unknown phase", `phases[1]: "go"`, func(c *Config) { c.Phases[1] = "go" }},
		{"phase twice", "phases[1]: enter-initrd", func(c *Config) { c.Phases[1] = EnterInitrd }},
		{"phases in another order", "phases[1]: enter-initrd", func(c *Config) { c.Phases = []string{Ready, EnterInitrd} }},
		{"service without a name", "services[0]: name", func(c *Config) { c.Services[0].Name = "" }},
		{"service twice", "services[1]: name", func(c *Config) { c.Services = append(c.Services, c.Services[0]) }},
		{"service without a program", "services[0]: echo: exec", func(c *Config) { c.Services[0].Exec = nil }},
		{"service by relative path", "services[0]: echo: exec", func(c *Config) { c.Services[0].Exec[0] = "echo" }},
		{"service argument with a NUL", "services[0]: echo: exec", func(c *Config) { c.Services[0].Exec[1] = "a\x00" }},
		{"service after a relative path", "services[0]: echo: after", func(c *Config) { c.Services[0].After = "run/socket" }},
		{"variable without a name", "services[0]: echo: env", func(c *Config) { c.Services[0].Env[""] = "x" }},
		{"variable's name with =", "services[0]: echo: env", func(c *Config) { c.Services[0].Env["A=B"] = "x" }},
		{"variable with a NUL", "services[0]: echo: env", func(c *Config) { c.Services[0].Env["A"] = "\x00" }},
		{"extra outside", "extra: \"../init\"", func(c *Config) { c.Extra["../init"] = AnyContent }},
		{"extra with an absolute path", "extra: \"/os-release\"", func(c *Config) { c.Extra["/os-release"] = AnyContent }},
		{"extra without a digest", "extra: os-release", func(c *Config) { c.Extra["os-release"] = "" }},
		{"extra with a short digest", "extra: os-release", func(c *Config) { c.Extra["os-release"] = "0a" }},
		{"extra in capitals", "extra: os-release", func(c *Config) { c.Extra["os-release"] = strings.Repeat("0A", 32) }},
		{"shell without debug", "want debug beside it", func(c *Config) { c.Debug = false }},
		{"relative shell", "shell", func(c *Config) { c.Shell = "sh" }},
		{"unknown reaction", "on_failure", func(c *Config) { c.OnFailure = "retry" }},
		{"port with a slash", "report_port", func(c *Config) { c.ReportPort = "../x" }},
		{"other schema", "schema is 2", func(c *Config) { c.Schema = 2 }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := sample()
			tt.change(c)
			_, err := c.Marshal()
			wantError(t, err, tt.want)
		})
	}
}

func wantError(t *testing.T, err error, want string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("got error %v, want %q", err, want)
	}
}

func TestBootconfig(t *testing.T) {
	for cmdline, want := range map[string]bool{
		"": false, "bootconfigs": false, "x=bootconfig": false, "my.bootconfig=1": false,
		"bootconfig": true, "a bootconfig": true, "bootconfig=on b": true, "a -- bootconfig": true,
	} {
		if got := Bootconfig(cmdline); got != want {
			t.Errorf("%q: got %v, want %v", cmdline, got, want)
		}
	}
}

// FuzzParse: a configuration that is accepted is written back and read as the same.
func FuzzParse(f *testing.F) {
	f.Add([]byte(golden))
	f.Add([]byte(`{"schema":1,"cmdline":""}`))
	f.Fuzz(func(t *testing.T, in []byte) {
		c, err := Parse(in)
		if err != nil || len(in) > MaxSize/16 { // indented, it may be too large
			return
		}
		once, err := c.Marshal()
		if err != nil {
			t.Fatalf("parsed but not written: %v", err)
		}
		again, err := Parse(once)
		if err != nil {
			t.Fatalf("written back: %v", err)
		}
		twice, err := again.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(once, twice) {
			t.Fatalf("got %s, want %s", twice, once)
		}
	})
}
