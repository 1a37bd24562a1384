// A wasip1 command in Go: reads JSON numbers, writes their sum, with goroutines and the garbage collector at work.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"runtime"
	"sync"
)

func main() {
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
