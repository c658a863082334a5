// An HTTP server on the socket that is passed to it. On SIGTERM it stops accepting, answers
// those that it has accepted, and ends.
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
	if err := server.Serve(listener); !errors.Is(err, net.ErrClosed) {
		log.Fatal(err)
	}
	if err := server.Shutdown(context.Background()); err != nil {
		log.Fatal(err)
	}
}
