// Package sandbox runs the program in network, process and mount namespaces of its own, which hold a mesh's addresses and
// its directory. It does not know what runs in them.
package sandbox

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strings"
	"syscall"
)

// insideEnv marks the process that runs inside the namespaces; its value means nothing.
const insideEnv = "INFERENCE_WAYPOINT_MESH_INSIDE"

// WorkDir holds all files of a running mesh. It is a tmpfs in the mesh's own mount namespace: it vanishes with the last
// process, however that process ended, and two meshes do not see each other's files.
const WorkDir = "/run"

// Enter runs the rest of the program in network, process and mount namespaces of its own. The first call starts the same
// program again inside them, waits for it and exits with its status; the call inside sets the namespaces up and returns.
// The inner program is process 1, so the kernel ends all processes of the mesh with it. It dies with the outer one, even by
// kill -9. So nothing is left behind, and meshes are isolated. Enter needs root.
func Enter() {
	if Inside() {
		if err := setUp(); err != nil {
			fmt.Fprintf(os.Stderr, "mesh: setting up its namespaces: %v\n", err)
			os.Exit(1)
		}
		return
	}
	if err := CheckHost(); err != nil {
		fmt.Fprintf(os.Stderr, "mesh: %v\n", err)
		os.Exit(1)
	}
	os.Exit(runInside())
}

// Inside reports whether the program runs inside the namespaces, as it does once Enter has returned.
func Inside() bool { return os.Getenv(insideEnv) != "" }

// CheckHost returns an error that names what the machine lacks.
func CheckHost() error {
	if os.Geteuid() != 0 {
		return errors.New("the mesh makes a network namespace, which needs root: run it as root")
	}
	if _, err := exec.LookPath("ip"); err != nil {
		return errors.New("the command ip is missing: install it, on Debian with: apt-get install iproute2")
	}
	return nil
}

func runInside() int {
	// Pdeathsig fires when the thread that started the child ends, not the process. So this thread must live on.
	runtime.LockOSThread()
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	// There is no network inside, so nothing can be downloaded there. GOPROXY=off makes a forgotten download fail at once,
	// with an error that names the module.
	cmd.Env = append(os.Environ(), insideEnv+"=1", "GOPROXY=off")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	numberIn, numberOut, err := os.Pipe()
	if err != nil {
		fmt.Fprintf(os.Stderr, "mesh: %v\n", err)
		return 1
	}
	cmd.ExtraFiles = []*os.File{numberIn} // file 3 inside
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWPID | syscall.CLONE_NEWNS,
		Pdeathsig:  syscall.SIGKILL,
	}
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT)
	if err := cmd.Start(); err != nil {
		fmt.Fprintf(os.Stderr, "mesh: making its namespaces: %v\n", err)
		return 1
	}
	_, _ = fmt.Fprintln(numberOut, cmd.Process.Pid)
	_ = numberOut.Close()
	go func() {
		for s := range signals {
			// A terminal's Ctrl-C reaches both processes; a second copy does no harm.
			_ = cmd.Process.Signal(s)
		}
	}()
	err = cmd.Wait()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit) && exit.ExitCode() >= 0:
		return exit.ExitCode()
	default:
		fmt.Fprintf(os.Stderr, "mesh: %v\n", err)
		return 1
	}
}

// The address ranges of the mesh. All addresses in a range are local, so that programs can listen on any of them at once.
const (
	podRange          = "10.244.0.0/16"
	ServiceRange      = "10.96.0.0/16"
	serviceEntryRange = "240.240.0.0/16" // istiod takes the addresses of ServiceEntries from it
	NodeAddress       = "10.0.0.1"       // the source address of connections that choose none
)

// OutsidePID is the process ID, outside the namespaces, of the program inside. nsenter needs it.
var OutsidePID int

func setUp() error {
	number := os.NewFile(3, "pid")
	if _, err := fmt.Fscan(number, &OutsidePID); err != nil {
		return fmt.Errorf("learning the process number: %w", err)
	}
	_ = number.Close()
	mounts := []struct {
		source, target, kind string
		flags                uintptr
	}{
		{"", "/", "", syscall.MS_PRIVATE | syscall.MS_REC}, // mounts below stay in this namespace
		{"proc", "/proc", "proc", 0},
		{"tmpfs", WorkDir, "tmpfs", 0},
	}
	for _, m := range mounts {
		if err := syscall.Mount(m.source, m.target, m.kind, m.flags, ""); err != nil {
			return fmt.Errorf("mounting %s: %w", m.target, err)
		}
	}
	commands := []string{
		"link set lo up",
		"route add local " + podRange + " dev lo",
		"route add local " + ServiceRange + " dev lo",
		"route add local " + serviceEntryRange + " dev lo",
		"address add " + NodeAddress + "/32 dev lo",
		"route add default dev lo src " + NodeAddress,
	}
	for _, c := range commands {
		if out, err := exec.Command("ip", strings.Fields(c)...).CombinedOutput(); err != nil {
			return fmt.Errorf("ip %s: %w: %s", c, err, strings.TrimSpace(string(out)))
		}
	}
	return nil
}
