package agent

import (
	"context"

	"github.com/plinth-os/plinth/agent/config"
)

// A stage is one step of the boot. An error of its function stops the machine.
type stage struct {
	name string
	run  func(context.Context, *State) error
}

// stages are the boot, in order. What the host can have changed is looked at
// before anything acts on it. Modules come before the TPM, whose driver may be
// one of them; until the registers were checked nothing else is done. All workloads
// are measured before a key for one of them, for a disk or for an image is asked for,
// and then images are proven and shown to nobody before the first program that is not
// the agent's runs. Earlier than that a broker is asked for what images are judged by
// alone: a policy, its keys, credentials for registries.
var stages = []stage{
	{"mounts", mountFileSystems},
	{"configuration", loadConfig},
	{"cmdline", checkCmdline},
	{"bootconfig", checkBootconfig},
	{"extra", checkExtra},
	{"modules", loadModules},
	{"tpm", openTPM},
	{"registers", checkRegisters},
	{config.EnterInitrd, extendPhase(config.EnterInitrd)},
	{"root", setRoot},
	{config.LeaveInitrd, extendPhase(config.LeaveInitrd)},
	{"lockdown", lockKernel},
	{"loopback", raiseLoopback},
	{"clock", online(setClock)},
	{"entropy", online(seedRandom)},
	{"workloads", wherever(findWorkloads)},
	{"network", online(raiseNetwork)},
	{"attestation", openAttestation},
	{"storage", forWorkloads(openStorage)},
	{"resolve", forWorkloads(resolveImages)},
	{"events", forWorkloads(measureWorkloads)},
	{"volumes", openVolumes},
	{"images", forWorkloads(fetchImages)},
	{"secrets", forWorkloads(getSecrets)},
	{config.SysInit, extendPhase(config.SysInit)},
	{"guest services", serveGuest},
	{"containers", forWorkloads(runContainers)},
	{"services", startServices},
	{config.Ready, ready},
	{"shell", startShell},
	{"report", sendReport},
}

// loadConfig reads what this image was built for.
func loadConfig(_ context.Context, s *State) error {
	b, err := s.readFile(config.Path, config.MaxSize)
	if err != nil {
		return err
	}
	s.Config, err = config.Parse(b)
	return err
}

// extendPhase measures that the boot has come to phase, if the configuration
// wants it.
func extendPhase(phase string) func(context.Context, *State) error {
	return func(_ context.Context, s *State) error {
		for _, p := range s.Config.Phases {
			if p != phase {
				continue
			}
			if s.Extender == nil {
				return errNoTPM
			}
			return s.Extender.Extend(phasePCR, phase)
		}
		return nil
	}
}
