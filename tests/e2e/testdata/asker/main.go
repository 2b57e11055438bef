// Command asker runs in a container of a guest and asks the guest's API. Each argument
// is one request, "GET PATH" or "POST PATH BODY"; of each answer it prints the status
// and the SHA-256 of the body, never the body. "file PATH" and "env NAME" do the same
// for what the container was given; "write PATH TEXT" writes a file.
package main

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"
)

func main() {
	for _, a := range os.Args[1:] {
		fmt.Printf("asker: %s => %s\n", a, do(a))
	}
	fmt.Println("asker: end")
	time.Sleep(time.Hour)
}

func do(a string) string {
	words := strings.SplitN(a, " ", 3)
	switch words[0] {
	case "file":
		b, err := os.ReadFile(words[1])
		return sum(b, err)
	case "write":
		return sum([]byte(words[2]), write(words[1], words[2]))
	case "env":
		return sum([]byte(os.Getenv(words[1])), nil)
	}
	body := ""
	if len(words) == 3 {
		body = words[2]
	}
	req, err := http.NewRequest(words[0], "http://127.0.0.1:8006"+words[1], strings.NewReader(body))
	if err != nil {
		return err.Error()
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err.Error()
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return fmt.Sprint(resp.StatusCode, " ", sum(b, err))
}

// write makes a file that a guest which ends at once leaves behind.
func write(path, text string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Sync(), f.Close())
}

func sum(b []byte, err error) string {
	if err != nil {
		return err.Error()
	}
	return fmt.Sprintf("%x", sha256.Sum256(b))
}
