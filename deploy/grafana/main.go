// Command grafana prints the dashboard that deploy/grafana/finwait.json is:
//
//	go run ./deploy/grafana > deploy/grafana/finwait.json
//
// Its tests hold the file to it, and every query to a Prometheus.
package main

import (
	"encoding/json"
	"fmt"
	"os"
)

func main() {
	text, err := render()
	if err == nil {
		_, err = os.Stdout.Write(text)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "grafana:", err)
		os.Exit(1)
	}
}

// render returns the dashboard as Grafana imports it.
func render() ([]byte, error) {
	text, err := json.MarshalIndent(dashboard(rows), "", "  ")
	return append(text, '\n'), err
}
