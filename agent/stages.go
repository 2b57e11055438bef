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
// one of them; until the registers were checked nothing else is done. Images are
// proven and shown to nobody, and all workloads are measured, before the first
// program that is not the agent's runs.
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
	{"storage", forWorkloads(openStorage)},
	{"images", forWorkloads(pullImages)},
	{"events", forWorkloads(measureWorkloads)},
	{config.SysInit, extendPhase(config.SysInit)},
	{"image service", forWorkloads(serveImages)},
	{"containers", forWorkloads(runContainers)},
	{"services", startServices},
	{config.Ready, extendPhase(config.Ready)},
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
