# What a person types. Each target sets up what it needs.
# What boots and tests throw-away hosts on this machine.
TESTBED := systemd-container mmdebstrap nftables iproute2 e2fsprogs curl
COMPILER := build-essential
QEMU := qemu-system-x86
BROWSER := chromium chromium-driver libnss3-tools fonts-dejavu-core ldap-utils

.PHONY: help sandbox sandbox-down test test-long lint lock docs bench clean

help:
	@echo "make sandbox       a whole service on a throw-away host on this machine (root or sudo)"
	@echo "make sandbox-down  take it away again"
	@echo "make test          lint, unit tests, molecule, browser (make test-long: full counts)"
	@echo "make lock          resolve the Python lock files anew"
	@echo "make docs          generate docs/variables.md and docs/hardware.md"
	@echo "make bench         the table of times in the README"

sandbox:
	@tools/setup controller $(TESTBED)
	@.venv/bin/python tools/sandbox up

sandbox-down:
	@.venv/bin/python tools/sandbox down

test:
	@tools/setup dev $(TESTBED) $(BROWSER) $(COMPILER)
	@.venv/bin/python tools/test

test-long:
	@tools/setup dev $(TESTBED) $(BROWSER) $(COMPILER) $(QEMU)
	@.venv/bin/python tools/test --long

lint:
	@tools/setup dev
	@.venv/bin/python tools/test lint

lock:
	@tools/setup dev
	@tools/lock

docs:
	@tools/setup controller
	@.venv/bin/python tools/docs

bench:
	@tools/setup controller $(TESTBED)
	@.venv/bin/python tests/bench/run

clean: sandbox-down
	rm -rf .venv .cache .sandbox
