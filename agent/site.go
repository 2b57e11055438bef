package agent

import (
	"context"
	"net"
	"net/netip"
	"syscall"

	"github.com/plinth-os/plinth/agent/config"
	"github.com/plinth-os/plinth/agent/guestapi"
	"github.com/plinth-os/plinth/agent/kbs"
	"github.com/plinth-os/plinth/agent/network"
	"github.com/plinth-os/plinth/agent/runner"
	"github.com/plinth-os/plinth/agent/storage"
	"github.com/plinth-os/plinth/imagepull"
	"github.com/plinth-os/plinth/imagepull/policy"
)

// A site is what stages of workloads need of other packages. Tests stand in for it.
type site struct {
	up         func(context.Context, *config.Network, func(string, ...any)) (*network.Uplink, error)
	containers func(*network.Uplink, func(string, ...any)) (runner.Network, error)
	memory     func(size int64) (imageStore, error)
	disk       func(ctx context.Context, device string) (imageStore, error)
	prepare    func(context.Context, *imagepull.Puller, policy.Name) (*imagepull.Prepared, error)
	fetch      func(context.Context, *imagepull.Prepared, imagepull.Store) (*imagepull.Pulled, error)
	brokers    func(...*kbs.Client) (broker, error)
	volume     func(context.Context, storage.VolumeOptions) (volume, error)
	listen     func(pid int) (net.Listener, error)
	create     func(context.Context, *runner.Runner, runner.Spec) (instance, error)
}

// guestSite is that of a guest.
var guestSite = site{
	up: network.Up,
	containers: func(u *network.Uplink, logf func(string, ...any)) (runner.Network, error) {
		return network.NewContainers(u, logf)
	},
	memory: func(size int64) (imageStore, error) { return stored(storage.Memory(size)) },
	disk:   func(ctx context.Context, device string) (imageStore, error) { return stored(storage.Disk(ctx, device)) },
	prepare: func(ctx context.Context, p *imagepull.Puller, n policy.Name) (*imagepull.Prepared, error) {
		return p.Prepare(ctx, n)
	},
	fetch: func(ctx context.Context, im *imagepull.Prepared, to imagepull.Store) (*imagepull.Pulled, error) {
		return im.Fetch(ctx, to)
	},
	brokers: func(clients ...*kbs.Client) (broker, error) { return kbs.NewBrokers(clients...) },
	volume:  openVolume,
	listen:  guestapi.ListenIn,
	create: func(ctx context.Context, r *runner.Runner, spec runner.Spec) (instance, error) {
		return r.Create(ctx, spec)
	},
}

// An instance is one run of a container: a *runner.Container.
type instance interface {
	PID() int
	Address() netip.Addr
	Start(context.Context) error
	Wait(context.Context) (syscall.WaitStatus, error)
	Kill(context.Context, syscall.Signal) error
	Delete(context.Context) error
}

// stored returns nil beside an error: a nil pointer would be a store that is there.
func stored(p *storage.Pool, err error) (imageStore, error) {
	if err != nil {
		return nil, err
	}
	return p, nil
}
