# An index: each target is one or two commands that also work without make.
# make image PROFILE=vtpm    make boot PROFILE=vtpm    make test

PROFILE ?= vtpm
PREFIX  ?= /usr/local
FUZZTIME ?= 60s
STATICCHECK = honnef.co/go/tools/cmd/staticcheck@v0.8.2
GOBUILD = CGO_ENABLED=0 GOFLAGS= GOAMD64=v1 GOTOOLCHAIN=local $(if $(FIPS),GOFIPS140=v1.0.0) go build -trimpath -buildvcs=false -ldflags='-s -w -buildid='
GUEST   = cmd/plinth/guest
KERNEL  = PLINTH_MODULES=$$(echo $(CURDIR)/.test/kernel/lib/modules/*) PLINTH_VMLINUZ=$$(echo $(CURDIR)/.test/kernel/boot/vmlinuz-*) PLINTH_OVMF=$(CURDIR)/.test/ovmf/root DEBS="$(CURDIR)/.test/ovmf/apt/archives/*.deb"

.PHONY: build image boot measure test short e2e-pull e2e-full e2e-kbs fidelity flips bench fuzz lint install clean

build: ## bin/plinth, one static binary with the guest's programs inside
	mkdir -p bin $(GUEST)
	$(GOBUILD) -o $(GUEST)/plinth-agent ./cmd/plinth-agent
	$(GOBUILD) -o $(GUEST)/plinth-shell ./cmd/plinth-shell
	$(GOBUILD) -tags guest -o bin/plinth ./cmd/plinth

image: build ## out/PROFILE
	bin/plinth build $(PROFILE)

boot: image ## boot out/PROFILE and compare it with its prediction
	bin/plinth boot out/$(PROFILE) --record --check

measure: image
	bin/plinth measure image out/$(PROFILE)

test: build ## everything, boots included; installs the tools that tests compare with
	tests/setup
	$(KERNEL) PLINTH_NETWORK=1 go test -timeout 60m ./...
	cd internal/oracle && PLINTH_OVMF=$(CURDIR)/.test/ovmf/root go test ./...

short: ## a minute, without network, root or outside tools
	go test -short ./...

e2e-pull: build ## guests that pull, measure and run an image of 40 MiB
	tests/setup
	$(KERNEL) PLINTH_NETWORK=1 go test -count=1 -timeout 30m -v -run 'TestPull|TestContainer|TestInitdataWorkloads' ./tests/e2e

e2e-full: build ## and one of 300 MiB
	tests/setup
	$(KERNEL) PLINTH_NETWORK=1 PLINTH_PULL=full go test -count=1 -timeout 60m -v -run 'TestPull|TestContainer|TestInitdataWorkloads' ./tests/e2e

e2e-kbs: build ## guests that get keys and secrets from a broker by attestation, and such that do not
	tests/setup
	$(KERNEL) PLINTH_NETWORK=1 go test -count=1 -timeout 40m -v -run 'TestKBS' ./tests/e2e

fidelity: build ## predicted against measured over firmware, stub, kernel, path and machine
	tests/setup
	PLINTH_NETWORK=1 PLINTH_FIDELITY=full go test -count=1 -timeout 60m -v -run TestFidelity ./tests/e2e

flips: build ## 100 more bits of a verity disk flipped, each booted
	tests/setup
	PLINTH_NETWORK=1 PLINTH_FLIPS=100 go test -count=1 -timeout 120m -v -run TestVerityFlips ./tests/e2e

bench: build ## how long builds, predictions and boots take, beside the targets
	go run ./tests/bench

fuzz: ## every fuzz target for FUZZTIME
	tests/fuzz $(FUZZTIME)

lint:
	test -z "$$(gofmt -l $$(git ls-files '*.go'))"
	go vet ./...
	go run $(STATICCHECK) ./...

install: build
	install -D -m 0755 bin/plinth $(DESTDIR)$(PREFIX)/bin/plinth

clean:
	rm -rf bin out .test $(GUEST)
