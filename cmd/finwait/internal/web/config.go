package web

import (
	"fmt"
	"os"

	toolkit "github.com/prometheus/exporter-toolkit/web"
	"go.yaml.in/yaml/v3"
)

// protection is what a web configuration has that keeps others out.
type protection struct {
	TLS *struct {
		ClientAuth string `yaml:"client_auth_type"`
	} `yaml:"tls_server_config"`
	Users map[string]any `yaml:"basic_auth_users"`
}

// readConfig returns what the file, which may be "", lacks that would keep others
// out.
func readConfig(file string) (lacking []string, err error) {
	var p protection
	if file != "" {
		if err := toolkit.Validate(file); err != nil {
			return nil, fmt.Errorf("web configuration %s: %w", file, err)
		}
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("web configuration: %w", err)
		}
		if err := yaml.Unmarshal(text, &p); err != nil {
			return nil, fmt.Errorf("web configuration %s: %w", file, err)
		}
	}
	if p.TLS == nil {
		lacking = append(lacking, "TLS")
	}
	if len(p.Users) == 0 && (p.TLS == nil || p.TLS.ClientAuth != "RequireAndVerifyClientCert") {
		lacking = append(lacking, "authentication")
	}
	return lacking, nil
}

// CheckConfig returns what is wrong with a web configuration file.
func CheckConfig(file string) error {
	_, err := readConfig(file)
	return err
}
