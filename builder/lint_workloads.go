package builder

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/plinth-os/plinth/measure"
	"github.com/plinth-os/plinth/profiles"
	"github.com/plinth-os/plinth/workload"
)

// containers are what the guest is to run, nil where it runs none.
func (i *lintImage) containers() (*workload.Config, error) {
	switch i.Workloads.From {
	case "":
		return nil, nil
	case profiles.FromImage:
		return workloadConfig(i.Profile), nil
	}
	if i.manifest == nil || !i.manifest.Has(InitdataName) {
		return nil, uncheckedf("the initdata says which containers run, and it is not known: name it in the profile, build, and lint the directory")
	}
	raw, err := i.file(InitdataName)
	if err != nil {
		return nil, err
	}
	return initdataWorkloads(raw)
}

// eachWorkload collects what find has to say of each container.
func (i *lintImage) eachWorkload(find func(*workload.Process) *lintFound) (found []lintFound, _ error) {
	c, err := i.containers()
	if err != nil || c == nil {
		return nil, err
	}
	for n := range c.Workloads {
		if f := find(&c.Workloads[n]); f != nil {
			f.where = "workload " + c.Workloads[n].Name + ": " + f.where
			found = append(found, *f)
		}
	}
	return found, nil
}

func testKeys(i *lintImage) ([]lintFound, error) {
	if len(i.Agent.TestKeys) == 0 {
		return nil, nil
	}
	return []lintFound{{
		fmt.Sprintf("%d keys lie open in the image: whoever has the image decrypts what they are for", len(i.Agent.TestKeys)),
		"agent.test_keys", "let the guest get its keys from a broker",
	}}, nil
}

// workloadUnmeasured is for guests in which nothing shows what they pulled.
func workloadUnmeasured(i *lintImage) ([]lintFound, error) {
	why, unknown := i.noRegister()
	if why == "" && unknown == nil {
		return nil, nil
	}
	c, err := i.containers()
	if err != nil || c == nil {
		return nil, err
	}
	found, err := i.eachWorkload(func(p *workload.Process) *lintFound {
		if p.Wanted() != "" || strings.HasPrefix(p.Image, "oci-archive:") && i.Workloads.From == profiles.FromImage { // known by its archive
			return nil
		}
		return &lintFound{
			why + ", so the agent takes no image by a tag", "image",
			"name it by digest: plinth image inspect prints it",
		}
	})
	if err == nil && c.ImageService {
		found = append(found, lintFound{
			why + ", and programs of the guest choose images: the agent refuses", "workloads.image_service",
			"list the images as workloads, by digest",
		})
	}
	if unknown != nil && len(found) > 0 {
		return nil, unknown
	}
	return found, err
}

// noRegister is why nothing in the guest's evidence shows what it measures while it
// runs, "" where something does.
func (i *lintImage) noRegister() (string, error) {
	switch i.Platform {
	case profiles.PlatformSNP:
		return "SNP has no register for what a guest measures while it runs", nil
	case profiles.PlatformTDX:
		kernel, err := i.file(KernelName)
		if err != nil {
			return "", err
		}
		release, err := measure.KernelRelease(bytes.NewReader(kernel), int64(len(kernel)))
		if err != nil {
			return "", uncheckedf("%s: %v", KernelName, err)
		}
		if !measure.ExtendsRTMR(release) {
			return "Linux " + release + " lets no program extend RTMR 3", nil
		}
	}
	return "", nil
}

func workloadConsole(i *lintImage) ([]lintFound, error) {
	return i.eachWorkload(func(p *workload.Process) *lintFound {
		if p.Output != workload.OutputConsole {
			return nil
		}
		return &lintFound{"what it prints goes to the console, and so to the host", "output", "drop output, or be sure that it prints no secret"}
	})
}

func workloadExec(i *lintImage) ([]lintFound, error) {
	return i.eachWorkload(func(p *workload.Process) *lintFound {
		if !p.Exec {
			return nil
		}
		return &lintFound{"programs of the guest may run others in the container: what was measured is not all that runs", "exec", "drop exec"}
	})
}

func unsignedAdmitted(i *lintImage) (found []lintFound, _ error) {
	c, err := i.containers()
	if err != nil || c == nil {
		return nil, err
	}
	for _, kind := range c.Admit {
		if !strings.HasSuffix(kind, "+unsigned") {
			continue
		}
		found = append(found, lintFound{
			fmt.Sprintf("%s images are taken, if the policy lets them: nobody vouches for what is in one", kind),
			"workloads.admit", "ask for signatures, or name every image by its digest",
		})
	}
	return found, nil
}

func resettablePCR(i *lintImage) ([]lintFound, error) {
	if !i.Workloads.PCR23 {
		return nil, nil
	}
	return []lintFound{{
		"PCR 23 can be reset by whoever reaches the TPM in the guest: what it holds proves nothing",
		"workloads.pcr_23", "let verifiers look at PCR 14, or at the register that workloads.event_pcr names",
	}}, nil
}
