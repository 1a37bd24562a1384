// A wasip1 command in Go: reads JSON numbers, writes their sum, with goroutines and the garbage collector at work. With
// the argument `files` it reads what is at `/` and writes in `/tmp`.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == "files" {
		if err := files(); err != nil {
			fmt.Println(err)
			os.Exit(4)
		}
		return
	}
	var numbers []int
	if err := json.NewDecoder(os.Stdin).Decode(&numbers); err != nil {
		fmt.Fprintln(os.Stderr, "not a list of numbers:", err)
		os.Exit(3)
	}
	var wait sync.WaitGroup
	parts := make(chan int, len(numbers))
	for _, n := range numbers {
		wait.Add(1)
		go func() {
			defer wait.Done()
			parts <- n
		}()
	}
	wait.Wait()
	close(parts)
	sum := 0
	for n := range parts {
		sum += n
	}
	runtime.GC()
	fmt.Println(sum)
}

func files() error {
	page, err := os.ReadFile("/page.html")
	if err != nil {
		return err
	}
	fmt.Print(string(page))
	fmt.Println(os.WriteFile("/new", page, 0o644))
	dir, err := os.MkdirTemp("", "go")
	if err != nil {
		return err
	}
	path := filepath.Join(dir, "a")
	if err := os.WriteFile(path, page, 0o644); err != nil {
		return err
	}
	if err := os.Truncate(path, 3); err != nil {
		return err
	}
	if err := os.Rename(path, filepath.Join(dir, "b")); err != nil {
		return err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		info, err := entry.Info()
		if err != nil {
			return err
		}
		fmt.Println(entry.Name(), entry.IsDir(), info.Size())
	}
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	left, err := os.ReadDir("/tmp")
	fmt.Println(len(left), err)
	return nil
}
