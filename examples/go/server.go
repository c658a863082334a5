// An HTTP server on the socket that is passed to it. It sends READY=1 when it can serve. On SIGTERM it
// stops accepting, finishes its requests, and ends.
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"syscall"
)

// passed is the first listener that LISTEN_FDS tells of, if it was meant for this process.
// The package activation of coreos/go-systemd does the same, for any number of them.
func passed() (net.Listener, error) {
	if os.Getenv("LISTEN_PID") != strconv.Itoa(os.Getpid()) || os.Getenv("LISTEN_FDS") != "1" {
		return nil, errors.New("no socket was passed")
	}
	file := os.NewFile(3, os.Getenv("LISTEN_FDNAMES"))
	for _, name := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
		os.Unsetenv(name)
	}
	// A duplicate, which is closed on exec.
	defer file.Close()
	return net.FileListener(file)
}

// ready sends READY=1, as SdNotify of the package daemon does.
func ready() {
	notify, err := net.Dial("unixgram", os.Getenv("NOTIFY_SOCKET"))
	if err == nil {
		fmt.Fprint(notify, "READY=1")
		notify.Close()
	}
}

func main() {
	listener, err := passed()
	if err != nil {
		log.Fatal(err)
	}
	server := http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintln(w, "hello")
	})}
	stop, _ := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	go func() {
		<-stop.Done()
		// Not Shutdown yet: it may miss what is accepted in this very moment.
		listener.Close()
	}()
	ready()
	if err := server.Serve(listener); !errors.Is(err, net.ErrClosed) {
		log.Fatal(err)
	}
	if err := server.Shutdown(context.Background()); err != nil {
		log.Fatal(err)
	}
}
