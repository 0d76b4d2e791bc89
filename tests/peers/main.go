// Command peer does with containers/storage what the tests request.
//
//	peer serve                        answers requests, one JSON object a line each way
//	peer hold LOCKFILE                holds a lock until its standard input ends
//	peer contend LOCKFILE SECONDS HOLD PAUSE
//	                                  takes a lock again and again, for HOLD milliseconds each time
//	peer change ROOT WORKER SECONDS MODE
//	                                  changes a store for a while, then reports what it should hold;
//	                                  makes and deletes images (churn), or keeps them (steady)
//
// A store is in ROOT/graph, with the vfs driver; its images are in ROOT/graph/vfs-images.
package main

import (
	"bufio"
	// As podman does: go-digest accepts sha384 and sha512 only where a program has them.
	_ "crypto/sha512"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/containers/storage"
	"github.com/containers/storage/pkg/lockfile"
	"github.com/containers/storage/pkg/reexec"
	digest "github.com/opencontainers/go-digest"
)

func main() {
	if reexec.Init() {
		return
	}
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "peer:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) == 1 && args[0] == "serve":
		return serve()
	case len(args) == 2 && args[0] == "hold":
		return hold(args[1])
	case len(args) == 5 && args[0] == "contend":
		hold, pause := seconds(args[3], time.Millisecond), seconds(args[4], time.Millisecond)
		return contend(args[1], seconds(args[2], time.Second), hold, pause)
	case len(args) == 5 && args[0] == "change":
		return change(args[1], args[2], seconds(args[3], time.Second), args[4] == "steady")
	}
	return fmt.Errorf("unknown arguments %q", args)
}

func seconds(text string, unit time.Duration) time.Duration {
	number, err := strconv.ParseFloat(text, 64)
	if err != nil {
		panic(err)
	}
	return time.Duration(number * float64(unit))
}

func open(root string) (storage.Store, error) {
	return storage.GetStore(storage.StoreOptions{
		GraphRoot:       filepath.Join(root, "graph"),
		RunRoot:         filepath.Join(root, "run"),
		GraphDriverName: "vfs",
	})
}

// Requests and answers.

type item struct {
	Key  string `json:"key"`
	Data []byte `json:"data"`
}

type request struct {
	Op       string   `json:"op"`
	Root     string   `json:"root"`
	Ref      string   `json:"ref"`
	ID       string   `json:"id"`
	Names    []string `json:"names"`
	Layer    string   `json:"layer"`
	Metadata string   `json:"metadata"`
	Created  string   `json:"created"`
	Digest   string   `json:"digest"`
	BigData  []item   `json:"big_data"`
	Key      string   `json:"key"`
	Data     []byte   `json:"data"`
}

type answer struct {
	Result  interface{} `json:"result"`
	Error   string      `json:"error"`
	Message string      `json:"message"`
}

type image struct {
	ID              string                   `json:"id"`
	Digest          digest.Digest            `json:"digest"`
	Digests         []digest.Digest          `json:"digests"`
	Names           []string                 `json:"names"`
	NamesHistory    []string                 `json:"names_history"`
	TopLayer        string                   `json:"top_layer"`
	MappedTopLayers []string                 `json:"mapped_top_layers"`
	Metadata        string                   `json:"metadata"`
	BigDataNames    []string                 `json:"big_data_names"`
	BigDataSizes    map[string]int64         `json:"big_data_sizes"`
	BigDataDigests  map[string]digest.Digest `json:"big_data_digests"`
	Created         time.Time                `json:"created"`
	Flags           map[string]interface{}   `json:"flags"`
}

func show(i *storage.Image) image {
	return image{
		ID: i.ID, Digest: i.Digest, Digests: i.Digests, Names: i.Names,
		NamesHistory: i.NamesHistory, TopLayer: i.TopLayer, MappedTopLayers: i.MappedTopLayers,
		Metadata: i.Metadata, BigDataNames: i.BigDataNames, BigDataSizes: i.BigDataSizes,
		BigDataDigests: i.BigDataDigests, Created: i.Created, Flags: i.Flags,
	}
}

var kinds = []struct {
	err  error
	name string
}{
	{storage.ErrImageUnknown, "ErrImageUnknown"},
	{storage.ErrLayerUnknown, "ErrLayerUnknown"},
	{storage.ErrNotAnID, "ErrNotAnID"},
	{storage.ErrNotAnImage, "ErrNotAnImage"},
	{storage.ErrDuplicateID, "ErrDuplicateID"},
	{storage.ErrDuplicateName, "ErrDuplicateName"},
	{storage.ErrDuplicateImageNames, "ErrDuplicateImageNames"},
	{storage.ErrInvalidBigDataName, "ErrInvalidBigDataName"},
	{storage.ErrSizeUnknown, "ErrSizeUnknown"},
	{storage.ErrDigestUnknown, "ErrDigestUnknown"},
	{storage.ErrStoreIsReadOnly, "ErrStoreIsReadOnly"},
	{digest.ErrDigestInvalidFormat, "ErrDigestInvalid"},
	{digest.ErrDigestInvalidLength, "ErrDigestInvalid"},
	{digest.ErrDigestUnsupported, "ErrDigestInvalid"},
	{fs.ErrNotExist, "ErrNotExist"},
}

func kind(err error) string {
	for _, known := range kinds {
		if errors.Is(err, known.err) {
			return known.name
		}
	}
	return "other"
}

func serve() error {
	stores := map[string]storage.Store{}
	lines := bufio.NewReaderSize(os.Stdin, 1<<20)
	answers := json.NewEncoder(os.Stdout)
	for {
		line, err := lines.ReadBytes('\n')
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		var asked request
		if err := json.Unmarshal(line, &asked); err != nil {
			return err
		}
		result, err := perform(stores, &asked)
		reply := answer{Result: result}
		if err != nil {
			reply = answer{Error: kind(err), Message: err.Error()}
		}
		if err := answers.Encode(reply); err != nil {
			return err
		}
	}
}

// perform does one operation. The first operation on a store opens it.
func perform(stores map[string]storage.Store, r *request) (interface{}, error) {
	if r.Op == "close" || r.Op == "reopen" {
		if s, ok := stores[r.Root]; ok {
			s.Free()
			delete(stores, r.Root)
		}
		if r.Op == "close" {
			return nil, nil
		}
	}
	s, ok := stores[r.Root]
	if !ok {
		var err error
		if s, err = open(r.Root); err != nil {
			return nil, err
		}
		stores[r.Root] = s
	}
	if result, err, done := read(s, r); done {
		return result, err
	}
	ref, err := r.Ref, error(nil)
	switch r.Op {
	case "open", "reopen":
		return nil, nil
	case "layers":
		// Images use the base, which is not deleted with them because it has a child.
		if _, err = s.CreateLayer("~base", "", nil, "", false, nil); err == nil {
			_, err = s.CreateLayer("~child", "~base", nil, "", false, nil)
		}
		return nil, err
	case "create":
		if ref, err = create(s, r); err != nil {
			return nil, err
		}
	case "delete":
		_, err := s.DeleteImage(ref, true)
		return nil, err
	case "collect_garbage":
		// Libraries before 1.45 do not collect images.
		collector, ok := s.(interface{ GarbageCollect() error })
		if !ok {
			return nil, errors.New("this library collects no garbage")
		}
		return nil, collector.GarbageCollect()
	case "image_directory":
		// Libraries before 1.53 keep nothing but big data.
		keeper, ok := s.(interface{ ImageDirectory(string) (string, error) })
		if !ok {
			return nil, errors.New("this library has no directories of images")
		}
		return keeper.ImageDirectory(ref)
	case "wipe":
		return nil, s.Wipe()
	case "set_names", "add_names", "remove_names":
		// The change may remove the name that it was found by.
		id := ref
		if found, err := s.Image(ref); err == nil {
			id = found.ID
		}
		change := map[string]func(string, []string) error{
			"set_names": s.SetNames, "add_names": s.AddNames, "remove_names": s.RemoveNames,
		}[r.Op]
		ref, err = id, change(ref, r.Names)
	case "set_metadata":
		err = s.SetMetadata(ref, r.Metadata)
	case "set_big_data":
		err = s.SetImageBigData(ref, r.Key, r.Data, digestManifest)
	default:
		return nil, fmt.Errorf("unknown operation %q", r.Op)
	}
	if err != nil {
		return nil, err
	}
	changed, err := s.Image(ref)
	if err != nil {
		return nil, err
	}
	return show(changed), nil
}

func read(s storage.Store, r *request) (result interface{}, err error, done bool) {
	switch r.Op {
	case "get":
		found, err := s.Image(r.Ref)
		if err != nil {
			return nil, err, true
		}
		return show(found), nil, true
	case "lookup":
		result, err = s.Lookup(r.Ref)
	case "exists":
		result = s.Exists(r.Ref)
	case "images":
		images, err := s.Images()
		shown := []image{}
		for n := range images {
			shown = append(shown, show(&images[n]))
		}
		return shown, err, true
	case "by_digest":
		images, err := s.ImagesByDigest(digest.Digest(r.Digest))
		ids := []string{}
		for _, found := range images {
			ids = append(ids, found.ID)
		}
		return ids, err, true
	case "metadata":
		result, err = s.Metadata(r.Ref)
	case "big_data":
		result, err = s.ImageBigData(r.Ref, r.Key)
	case "big_data_names":
		result, err = s.ListImageBigData(r.Ref)
	case "big_data_size":
		result, err = s.ImageBigDataSize(r.Ref, r.Key)
	case "big_data_digest":
		result, err = s.ImageBigDataDigest(r.Ref, r.Key)
	default:
		return nil, nil, false
	}
	return result, err, true
}

func create(s storage.Store, r *request) (string, error) {
	options := storage.ImageOptions{Digest: digest.Digest(r.Digest)}
	if r.Created != "" {
		created, err := time.Parse(time.RFC3339Nano, r.Created)
		if err != nil {
			return "", err
		}
		options.CreationDate = created
	}
	items := r.BigData
	if setItems(&options, items) {
		items = nil
	}
	made, err := s.CreateImage(r.ID, r.Names, r.Layer, r.Metadata, &options)
	if err != nil {
		return "", err
	}
	for _, each := range items {
		if err := s.SetImageBigData(made.ID, each.Key, each.Data, digestManifest); err != nil {
			return "", err
		}
	}
	return made.ID, nil
}

// setItems makes CreateImage store the items, too, under one hold of the lock. It returns false for
// libraries from before August 2023, which have no such option.
func setItems(options *storage.ImageOptions, items []item) bool {
	option := reflect.ValueOf(options).Elem().FieldByName("BigData")
	if !option.IsValid() {
		return false
	}
	for _, each := range items {
		next := reflect.New(option.Type().Elem()).Elem()
		next.FieldByName("Key").SetString(each.Key)
		next.FieldByName("Data").SetBytes(each.Data)
		option.Set(reflect.Append(option, next))
	}
	return true
}

func digestManifest(data []byte) (digest.Digest, error) {
	return digest.Canonical.FromBytes(data), nil
}

// The lock.

func hold(path string) error {
	lock, err := lockfile.GetLockfile(path)
	if err != nil {
		return err
	}
	lock.Lock()
	fmt.Println("held")
	_, err = io.Copy(io.Discard, os.Stdin)
	lock.Unlock()
	return err
}

func contend(path string, howLong, each, between time.Duration) error {
	lock, err := lockfile.GetLockfile(path)
	if err != nil {
		return err
	}
	fmt.Println("ready")
	if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err != nil {
		return err
	}
	held := 0
	for end := time.Now().Add(howLong); time.Now().Before(end); held++ {
		lock.Lock()
		time.Sleep(each)
		lock.Unlock()
		time.Sleep(between)
	}
	fmt.Println(held)
	return nil
}

// Changes beside other writers; worker.py does the same.

type kept struct {
	Name     string `json:"name"`
	Metadata string `json:"metadata"`
	Data     string `json:"data"`
}

type report struct {
	Worker      string          `json:"worker"`
	Operations  int             `json:"operations"`
	Images      map[string]kept `json:"images"`
	Deleted     []string        `json:"deleted"`
	SharedNames []string        `json:"shared_names"`
	SharedItem  string          `json:"shared_item"`
	Counted     int             `json:"counted"`
}

func change(root, name string, howLong time.Duration, steady bool) error {
	s, err := open(root)
	if err != nil {
		return err
	}
	w := &worker{store: s, steady: steady, report: report{
		Worker: name, Images: map[string]kept{}, Deleted: []string{},
	}}
	// Making an image takes several steps, of which podman must not see one before the last.
	for steady && len(w.mine) < keep {
		if err := w.changeOnce(); err != nil {
			return err
		}
	}
	out := json.NewEncoder(os.Stdout)
	in := bufio.NewReader(os.Stdin)
	fmt.Println(`"ready"`)
	if _, err := in.ReadString('\n'); err != nil {
		return err
	}
	end := time.Now().Add(howLong)
	for first := w.round; w.round == first || time.Now().Before(end); {
		if err := w.changeOnce(); err != nil {
			return fmt.Errorf("round %d: %w", w.round, err)
		}
		if steady {
			time.Sleep(pause)
		}
	}
	if err := out.Encode(w.report); err != nil {
		return err
	}
	if _, err := in.ReadString('\n'); err != nil {
		return err
	}
	images, err := s.Images()
	if err != nil {
		return err
	}
	ids := []string{}
	for _, listed := range images {
		ids = append(ids, listed.ID)
	}
	return out.Encode(ids)
}

const keep = 4

// pause is between changes, so that podman, which takes the lock for each image, can finish.
const pause = 500 * time.Millisecond

var sharedImage = strings.Repeat("5", 64)

// metadata and content are those of an image without layers, as podman needs them.
func metadata(text string) string {
	return fmt.Sprintf(`{"note":%q}`, text)
}

func content(text string) (config, manifest []byte) {
	config = []byte(fmt.Sprintf(`{"architecture":"amd64","os":"linux","author":%q,`+
		`"rootfs":{"type":"layers","diff_ids":[]},"config":{}}`, text))
	manifest = []byte(fmt.Sprintf(`{"schemaVersion":2,`+
		`"mediaType":"application/vnd.oci.image.manifest.v1+json",`+
		`"config":{"mediaType":"application/vnd.oci.image.config.v1+json",`+
		`"digest":%q,"size":%d},"layers":[]}`, digest.FromBytes(config), len(config)))
	return config, manifest
}

type worker struct {
	store  storage.Store
	steady bool
	round  int
	mine   []string
	report report
}

// changeOnce makes an image, or takes the oldest one, and changes it; with enough images, it
// removes the oldest one.
func (w *worker) changeOnce() error {
	text := fmt.Sprintf("%s %d", w.report.Worker, w.round)
	name := fmt.Sprintf("localhost/%s:%d", w.report.Worker, w.round)
	sharedName := fmt.Sprintf("localhost/shared-%s:%d", w.report.Worker, w.round)
	w.round++
	id, err := w.begin(name, text)
	if err != nil {
		return err
	}
	s, again := w.store, metadata(text+" again")
	err = w.do(
		func() error { return s.SetImageBigData(id, "text", []byte(text), digestManifest) },
		func() error { return s.SetMetadata(id, again) },
		func() error { return s.AddNames(sharedImage, []string{sharedName}) },
		func() error {
			return s.SetImageBigData(sharedImage, w.report.Worker+".item", []byte(text), digestManifest)
		},
		func() error { return s.AddNames(id, []string{"localhost/moving:1"}) },
	)
	if err != nil {
		return err
	}
	w.report.Images[id] = kept{Name: name, Metadata: again, Data: text}
	w.report.SharedItem = text
	w.report.SharedNames = append(w.report.SharedNames, sharedName)
	w.mine = append(w.mine, id)
	return w.removeOldest()
}

func (w *worker) do(steps ...func() error) error {
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
		w.report.Operations++
	}
	return nil
}

func (w *worker) begin(name, text string) (string, error) {
	if w.steady && len(w.mine) == keep {
		id := w.mine[0]
		w.mine = w.mine[1:]
		return id, w.do(func() error { return w.store.SetNames(id, []string{name}) })
	}
	made, err := w.store.CreateImage(
		"", []string{name}, "", metadata(text), &storage.ImageOptions{})
	if err != nil {
		return "", err
	}
	config, manifest := content(text)
	set := func(key string, data []byte) func() error {
		return func() error { return w.store.SetImageBigData(made.ID, key, data, digestManifest) }
	}
	return made.ID, w.do(
		set("manifest", manifest), set(digest.FromBytes(config).String(), config))
}

func (w *worker) removeOldest() error {
	if len(w.report.SharedNames) > keep {
		oldest := w.report.SharedNames[:1]
		w.report.SharedNames = w.report.SharedNames[1:]
		err := w.do(func() error { return w.store.RemoveNames(sharedImage, oldest) })
		if err != nil {
			return err
		}
	}
	if len(w.mine) > keep {
		oldest := w.mine[0]
		w.mine = w.mine[1:]
		delete(w.report.Images, oldest)
		w.report.Deleted = append(w.report.Deleted, oldest)
		return w.do(func() error { _, err := w.store.DeleteImage(oldest, true); return err })
	}
	return nil
}
