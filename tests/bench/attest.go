package main

import (
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/google/go-eventlog/register"
	"github.com/google/go-eventlog/tcg"
	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"

	"github.com/plinth-os/plinth/agent/attester"
	agentkbs "github.com/plinth-os/plinth/agent/kbs"
	"github.com/plinth-os/plinth/tests/kbs"
	"github.com/plinth-os/plinth/tests/swtpm"
)

const (
	attestTurns   = 9
	attestTarget  = 150.0 // ms
	memoryTarget  = 32.0  // MiB
	attestCommand = "attest-once"
	attestSecret  = "default/key/1"
	recordedLog   = "measure/testdata/boots/trixie-disk-full.log.gz" // of a boot that happened
)

// attest prints what it costs the agent to get a secret, and what it holds when it
// has nothing to do, in a boot of the image in dir.
func (b *bench) attest(dir string) error {
	fmt.Printf("\nattestation, median of %d, load average %s\n\n", attestTurns, loadAverage())
	t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "what\ttakes\tfrom\tto\ttarget\n")
	const what = "the agent's processor time, challenge to secret"
	times, err := attestTimes(b.dir)
	if err != nil {
		fmt.Fprintf(t, "%s\tnot run: %v\n", what, err)
	} else {
		got := times[attestTurns/2].Seconds() * 1000
		fmt.Fprintf(t, "%s\t%.1f ms\t%.1f ms\t%.1f ms\t%s\n", what, got, times[0].Seconds()*1000, times[attestTurns-1].Seconds()*1000, verdict(got, attestTarget, "ms"))
	}
	memory, err := b.idle(dir)
	if err != nil {
		fmt.Fprintf(t, "the agent's memory when idle\tnot run: %v\n", err)
	} else {
		got := float64(memory) / 1024
		fmt.Fprintf(t, "the agent's memory when idle\t%.1f MiB\t\t\t%s\n", got, verdict(got, memoryTarget, "MiB"))
	}
	return t.Flush()
}

// idle boots an image and returns what its agent holds then, in KiB.
func (b *bench) idle(dir string) (int64, error) {
	if _, err := os.Stat(dir); err != nil {
		return 0, fmt.Errorf("no %s here", dir)
	}
	out, err := exec.Command(b.plinth, "boot", dir, "--json").Output()
	if err != nil {
		return 0, fmt.Errorf("boot of %s: %w", dir, err)
	}
	var report struct{ Memory int64 }
	if err := json.Unmarshal(out, &report); err != nil {
		return 0, fmt.Errorf("boot of %s: report: %w", dir, err)
	}
	if report.Memory == 0 {
		return 0, fmt.Errorf("boot of %s: no memory in the report", dir)
	}
	return report.Memory, nil
}

// attestTimes are the times of processes that do nothing else, in order.
func attestTimes(tmp string) (times []time.Duration, err error) {
	ctx, stop := context.WithCancel(context.Background())
	host := &fakeTB{ctx: ctx}
	defer func() { stop(); host.end() }()
	log, err := readLog(recordedLog)
	if err != nil {
		return nil, err
	}
	ca, logFile := filepath.Join(tmp, "kbs.pem"), filepath.Join(tmp, "eventlog")
	state := filepath.Join(tmp, "tpm")
	broker := &kbs.Broker{Resources: map[string]kbs.Resource{attestSecret: {Value: []byte("a secret of 32 bytes, for a key.")}}}
	var server *kbs.Server
	var tpm *swtpm.TPM
	err = host.run(func() {
		broker.Set("trusted_aks", []any{base64.StdEncoding.EncodeToString(swtpm.AK(host, state))})
		server, tpm = kbs.Serve(host, broker), swtpm.Start(host, state)
	})
	if err != nil {
		return nil, err
	}
	pcr11, err := extendAll(tpm.Socket, log)
	if err != nil {
		return nil, err
	}
	broker.Set("tpm_pcr11", []any{hex.EncodeToString(pcr11)})
	for name, content := range map[string][]byte{ca: server.CA, logFile: log} {
		if err := os.WriteFile(name, content, 0o600); err != nil {
			return nil, err
		}
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	for range attestTurns {
		cmd := exec.Command(self, attestCommand, tpm.Socket, server.URL(), ca, logFile)
		cmd.Env = append(os.Environ(), "GOMAXPROCS=2")
		cmd.Stderr = os.Stderr
		out, err := cmd.Output()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", attestCommand, err)
		}
		took, err := time.ParseDuration(string(out))
		if err != nil {
			return nil, err
		}
		times = append(times, took)
	}
	slices.Sort(times)
	return times, nil
}

func readLog(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		return nil, err
	}
	return io.ReadAll(z)
}

// extendAll extends a TPM as a log says, and returns what PCR 11 is then.
func extendAll(socket string, log []byte) ([]byte, error) {
	t, err := linuxudstpm.Open(socket)
	if err != nil {
		return nil, err
	}
	defer t.Close()
	parsed, err := tcg.ParseEventLog(log, tcg.ParseOpts{})
	if err != nil {
		return nil, err
	}
	pcr11 := make([]byte, sha256.Size)
	for _, e := range parsed.Events(register.HashSHA256) {
		if e.Type == tcg.NoAction {
			continue
		}
		if err := extend(t, e.Index, e.Digest); err != nil {
			return nil, err
		}
		if e.Index == 11 {
			next := sha256.Sum256(append(pcr11, e.Digest...))
			pcr11 = next[:]
		}
	}
	return pcr11, nil
}

func extend(t transport.TPM, pcr int, digest []byte) error {
	_, err := tpm2.PCRExtend{
		PCRHandle: tpm2.AuthHandle{Handle: tpm2.TPMHandle(pcr), Auth: tpm2.PasswordAuth(nil)},
		Digests:   tpm2.TPMLDigestValues{Digests: []tpm2.TPMTHA{{HashAlg: tpm2.TPMAlgSHA256, Digest: digest}}},
	}.Execute(t)
	return err
}

// attestOnce gets a secret as the agent does and prints the processor time that it
// took this process.
func attestOnce(args []string) error {
	if len(args) != 4 {
		return fmt.Errorf("%d arguments: want SOCKET URL CA LOG", len(args))
	}
	ca, err := os.ReadFile(args[2])
	if err != nil {
		return err
	}
	log, err := os.ReadFile(args[3])
	if err != nil {
		return err
	}
	roots, err := agentkbs.ParseCAs(string(ca))
	if err != nil {
		return err
	}
	t, err := linuxudstpm.Open(args[0])
	if err != nil {
		return err
	}
	defer t.Close()
	a, err := attester.NewTPM(attester.Shared(t), attester.TPMOptions{Snapshot: func(read func([]byte) error) error { return read(log) }})
	if err != nil {
		return err
	}
	if c, ok := a.(io.Closer); ok {
		defer c.Close() // or the emulator would be full of keys soon
	}
	u, err := agentkbs.ParseURI("kbs:///" + attestSecret)
	if err != nil {
		return err
	}
	client := &agentkbs.Client{URL: args[1], Roots: roots, Attester: a}
	before := processorTime()
	if _, err := client.Resource(context.Background(), u); err != nil {
		return err
	}
	_, err = fmt.Print(processorTime() - before)
	return err
}

func processorTime() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u) // fails for another process only
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
