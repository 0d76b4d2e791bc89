// The containers/storage library, serving the same tasks as the Python workers: a request a line
// on the standard input, an answer a line on the standard output.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	storage "github.com/containers/storage"
	digest "github.com/opencontainers/go-digest"
)

type request struct {
	Do       string   `json:"do"`
	Root     string   `json:"root"`
	Ref      string   `json:"ref"`
	Refs     []string `json:"refs"`
	Passes   int      `json:"passes"`
	Duration float64  `json:"duration"`
	Size     int      `json:"size"`
	Verify   bool     `json:"verify"`
	Images   int      `json:"images"`
	Tasks    int      `json:"tasks"`
}

type reply map[string]interface{}

var (
	store  storage.Store
	serial int
	mutex  sync.Mutex
	item   string
)

func open(root string) (storage.Store, error) {
	return storage.GetStore(storage.StoreOptions{
		GraphRoot:       root + "/graph",
		RunRoot:         root + "/run",
		GraphDriverName: "vfs",
	})
}

func metadata() string {
	mutex.Lock()
	defer mutex.Unlock()
	serial++
	return fmt.Sprintf(`{"signatures-sizes":{"sha256:%064x":[]}}`, serial)
}

func since(start time.Time) float64 {
	return time.Since(start).Seconds()
}

func samples(values ...float64) reply {
	return reply{"samples": values}
}

func commit(r request) (reply, error) {
	taken := []float64{}
	for _, ref := range r.Refs {
		start := time.Now()
		if err := store.SetMetadata(ref, metadata()); err != nil {
			return nil, err
		}
		taken = append(taken, since(start))
	}
	return samples(taken...), nil
}

func burst(r request) (reply, error) {
	failures := make(chan error, len(r.Refs))
	start := time.Now()
	for _, ref := range r.Refs {
		go func(ref string) { failures <- store.SetMetadata(ref, metadata()) }(ref)
	}
	for range r.Refs {
		if err := <-failures; err != nil {
			return nil, err
		}
	}
	return samples(since(start)), nil
}

func commitFor(r request) (reply, error) {
	start := time.Now()
	commits := 0
	for since(start) < r.Duration {
		if err := store.SetMetadata(r.Refs[commits%len(r.Refs)], metadata()); err != nil {
			return nil, err
		}
		commits++
	}
	return reply{"commits": commits, "seconds": since(start)}, nil
}

func get(r request) (reply, error) {
	start := time.Now()
	for pass := 0; pass < r.Passes; pass++ {
		for _, ref := range r.Refs {
			if _, err := store.Image(ref); err != nil {
				return nil, err
			}
		}
	}
	return samples(since(start) / float64(r.Passes*len(r.Refs))), nil
}

func images(request) (reply, error) {
	start := time.Now()
	_, err := store.Images()
	return samples(since(start)), err
}

func openAnother(r request) (reply, error) {
	start := time.Now()
	another, err := open(r.Root)
	if err != nil {
		return nil, err
	}
	taken := since(start)
	another.Free()
	return samples(taken), nil
}

func nextRead(r request) (reply, error) {
	start := time.Now()
	_, err := store.Image(r.Ref)
	return samples(since(start)), err
}

func canonical(data []byte) (digest.Digest, error) {
	return digest.FromBytes(data), nil
}

func put(r request) (reply, error) {
	image, err := store.CreateImage("", nil, "", "", &storage.ImageOptions{})
	if err != nil {
		return nil, err
	}
	data := make([]byte, r.Size)
	start := time.Now()
	if err := store.SetImageBigData(image.ID, "blob", data, canonical); err != nil {
		return nil, err
	}
	taken := since(start)
	_, err = store.DeleteImage(image.ID, true)
	return samples(taken), err
}

func makeItem(r request) (reply, error) {
	image, err := store.CreateImage("", nil, "", "", &storage.ImageOptions{})
	if err != nil {
		return nil, err
	}
	item = image.ID
	return reply{}, store.SetImageBigData(item, "blob", make([]byte, r.Size), canonical)
}

func read(r request) (reply, error) {
	start := time.Now()
	data, err := store.ImageBigData(item, "blob")
	if err == nil && r.Verify {
		digest.FromBytes(data)
	}
	return samples(since(start)), err
}

func ingestOne(into storage.Store, number int) error {
	name := fmt.Sprintf("localhost/image-%d:latest", number)
	image, err := into.CreateImage("", []string{name}, "", "", &storage.ImageOptions{})
	if err != nil {
		return err
	}
	if err := into.SetImageBigData(image.ID, "manifest", make([]byte, 500), canonical); err != nil {
		return err
	}
	return into.SetImageBigData(image.ID, "config", make([]byte, 300), canonical)
}

func ingest(r request) (reply, error) {
	into, err := open(r.Root)
	if err != nil {
		return nil, err
	}
	defer into.Free()
	numbers := make(chan int, r.Images)
	for number := 0; number < r.Images; number++ {
		numbers <- number
	}
	close(numbers)
	failures := make(chan error, r.Images)
	start := time.Now()
	for task := 0; task < r.Tasks; task++ {
		go func() {
			for number := range numbers {
				failures <- ingestOne(into, number)
			}
		}()
	}
	for number := 0; number < r.Images; number++ {
		if err := <-failures; err != nil {
			return nil, err
		}
	}
	return samples(since(start)), nil
}

func proportional() (int, error) {
	text, err := os.ReadFile("/proc/self/smaps_rollup")
	if err != nil {
		return 0, err
	}
	for _, line := range strings.Split(string(text), "\n") {
		var kilobytes int
		if n, _ := fmt.Sscanf(line, "Pss: %d kB", &kilobytes); n == 1 {
			return kilobytes * 1024, nil
		}
	}
	return 0, fmt.Errorf("no Pss in smaps_rollup")
}

func memory(r request) (reply, error) {
	start, err := proportional()
	if err != nil {
		return nil, err
	}
	if store, err = open(r.Root); err != nil {
		return nil, err
	}
	opened, err := proportional()
	return reply{"opened": opened - start, "start": start}, err
}

func setup(r request) (reply, error) {
	var err error
	store, err = open(r.Root)
	return reply{}, err
}

var tasks = map[string]func(request) (reply, error){
	"setup":      setup,
	"commit":     commit,
	"burst":      burst,
	"commit_for": commitFor,
	"get":        get,
	"images":     images,
	"open":       openAnother,
	"next_read":  nextRead,
	"put":        put,
	"make_item":  makeItem,
	"read":       read,
	"ingest":     ingest,
	"memory":     memory,
}

func answer(line []byte) reply {
	var r request
	if err := json.Unmarshal(line, &r); err != nil {
		return reply{"error": err.Error()}
	}
	task, ok := tasks[r.Do]
	if !ok {
		return reply{"unsupported": r.Do}
	}
	result, err := task(r)
	if err != nil {
		return reply{"error": err.Error()}
	}
	return result
}

func main() {
	in := bufio.NewReader(os.Stdin)
	out := json.NewEncoder(os.Stdout)
	for {
		line, err := in.ReadBytes('\n')
		if err != nil {
			return
		}
		if err := out.Encode(answer(line)); err != nil {
			return
		}
	}
}
