// Command aaunitctl attaches AppArmor profiles to systemd services, and proves it.
package main

import (
	"os"

	"github.com/aaunit/aaunit/internal/cli"
)

// version is set when a package is built (-ldflags "-X main.version=…").
var version = "dev"

func main() { os.Exit(cli.Main(version)) }
