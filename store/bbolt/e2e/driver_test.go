//go:build unix

package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/retell-resilience/resilience"
	"github.com/retell-resilience/resilience/retell/retelltest"
)

const (
	burst  = 130 // what a new process gets at once: more than its slots and its queue hold
	window = 60  // what it has under way after that

	patienceOfAll = 4 * time.Minute // a bound for whatever the driver waits for, on the slowest of machines
)

// job is one person to call, as the queue that wants them called knows it.
type job struct {
	underway  int
	called    string // id of the call, once known
	refused   bool   // by Retell, for good
	withdrawn bool   // the caller hung up, and it is proven that nothing was sent
	parked    bool   // the worker that lives owns it
	doubtful  bool   // it was said, or nothing was said, and it may have rung
	told      []word // every answer, for the reader of a failure
}

func (j *job) final() bool { return j.called != "" || j.refused || j.withdrawn }

// driver is the job queue. It lives through all workers.
type driver struct {
	t      *testing.T
	dir    string
	server *retelltest.Server
	jobs   []job
	todo   []int

	cmd    *exec.Cmd
	orders *json.Encoder
	lines  <-chan line

	seq      int
	underway map[int]order // by Seq
	words    int           // heard from this worker
	last     *report
	asked    bool // for a report

	heard tallies
}

type tallies struct{ confirmed, replayed, parked, inDoubt, notSent, refused, throttled, open int }

func newDriver(t *testing.T, server *retelltest.Server, n int) *driver {
	d := &driver{t: t, dir: t.TempDir(), server: server, jobs: make([]job, n)}
	for i := range n {
		d.todo = append(d.todo, i)
	}
	return d
}

func hangsUp(job int) bool     { return job%20 == 7 }
func comesTwice(job int) bool  { return job%20 == 13 }
func (d *driver) idle() bool   { return len(d.todo) == 0 && len(d.underway) == 0 }
func (d *driver) path() string { return filepath.Join(d.dir, storeFile) }

// start runs a new worker.
func (d *driver) start() {
	d.t.Helper()
	d.cmd = exec.CommandContext(d.t.Context(), os.Args[0]) //nolint:gosec // this binary
	d.cmd.Env = append(os.Environ(), dirEnv+"="+d.dir, urlEnv+"="+d.server.URL())
	stderr, err := os.OpenFile(filepath.Join(d.dir, "stderr"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	require.NoError(d.t, err)
	defer func() { _ = stderr.Close() }()
	d.cmd.Stderr = stderr
	in, err := d.cmd.StdinPipe()
	require.NoError(d.t, err)
	out, err := d.cmd.StdoutPipe()
	require.NoError(d.t, err)
	require.NoError(d.t, d.cmd.Start())
	lines := make(chan line, 1024)
	go func() {
		defer close(lines)
		scan := bufio.NewScanner(out)
		scan.Buffer(nil, 16<<20)
		for scan.Scan() {
			var l line
			if json.Unmarshal(scan.Bytes(), &l) == nil { // the last one of a worker that was killed may be cut
				lines <- l
			}
		}
	}()
	d.orders, d.lines, d.underway, d.words = json.NewEncoder(in), lines, map[int]order{}, 0
	d.last, d.asked = nil, false
	for range burst {
		d.submit()
	}
}

// submit gives the worker the next job.
func (d *driver) submit() {
	if len(d.todo) == 0 {
		return
	}
	i := d.todo[0]
	d.todo = d.todo[1:]
	j := &d.jobs[i]
	if j.final() || j.parked || j.underway > 0 {
		return
	}
	o := order{Job: i}
	if hangsUp(i) && !j.doubtful {
		o.Patience = time.Duration(1+i%40) * time.Millisecond
	}
	d.order(o)
	if comesTwice(i) {
		d.order(o)
	}
}

func (d *driver) order(o order) {
	d.seq++
	o.Seq = d.seq
	if o.Report == 0 {
		d.underway[o.Seq] = o
		d.jobs[o.Job].underway++
	}
	_ = d.orders.Encode(o) // a worker that is gone says nothing, and that is looked at
}

// until lets the worker work until a condition holds.
func (d *driver) until(what string, done func() bool) {
	d.t.Helper()
	over := time.NewTimer(patienceOfAll)
	defer over.Stop()
	tick := time.NewTicker(250 * time.Millisecond) // so that a job that comes back at once does not spin
	defer tick.Stop()
	for !done() {
		select {
		case l, alive := <-d.lines:
			if !alive {
				d.t.Fatalf("the worker died while waiting until %s: %v\n%s", what, d.cmd.Wait(), d.stderr())
			}
			d.hear(l)
		case <-tick.C:
			for number, rang := range d.server.AllRings() {
				require.LessOrEqual(d.t, rang, 1, "%s rang twice", number)
			}
			if d.idle() && !d.asked { // a report costs a look at every key
				d.asked = true
				d.order(order{Report: len(d.jobs)})
			}
		case <-over.C:
			d.t.Fatalf("waited too long until %s: %s; %s", what, d.open(), d.stats())
		}
		for len(d.todo) > 0 && len(d.underway) < window {
			d.submit()
		}
	}
}

func (d *driver) hear(l line) {
	switch {
	case l.Word != nil:
		d.words++
		d.jobs[l.Word.Job].underway--
		delete(d.underway, l.Word.Seq)
		d.note(*l.Word)
	case l.Report != nil:
		d.last, d.asked = l.Report, false
		d.look()
	case l.Closed != "":
		d.t.Logf("the worker closed: %s", l.Closed)
	}
}

// look submits again what was in doubt when its caller left, and is known not to have happened now.
func (d *driver) look() {
	for i, state := range d.last.States {
		j := &d.jobs[i]
		if j.doubtful && !j.final() && !j.parked && j.underway == 0 && (state == resilience.KeyFree || state == resilience.KeyNotApplied) {
			d.again(i)
		}
	}
}

// note is what a job queue makes of an answer.
func (d *driver) note(w word) {
	j := &d.jobs[w.Job]
	w.Worker = d.cmd.Process.Pid
	j.told = append(j.told, w)
	require.False(d.t, w.InDoubt && w.NotSent, "%+v: never both", w)
	require.False(d.t, w.Parked && w.NotSent, "%+v: the queue will send it", w)
	switch {
	case w.Error == "":
		if d.heard.confirmed++; w.Replayed {
			d.heard.replayed++
		}
		require.NotEmpty(d.t, w.CallID)
		if j.called != "" {
			require.Equal(d.t, j.called, w.CallID, "one key, two calls")
		}
		require.False(d.t, j.refused || j.withdrawn, "%s was final, and was called", keyOf(w.Job))
		j.called = w.CallID
	case w.Parked:
		d.heard.parked++
		j.parked = true
		j.doubtful = j.doubtful || w.InDoubt
	case w.InDoubt:
		d.heard.inDoubt++
		j.doubtful = true // the worker finds out; the next one is asked again
	case w.NotSent:
		d.heard.notSent++
		if hangsUp(w.Job) && !j.doubtful {
			j.withdrawn = true
			return
		}
		d.again(w.Job)
	case w.Status == 429:
		d.heard.throttled++
		d.again(w.Job)
	case w.Status != 0:
		d.heard.refused++
		require.Equal(d.t, 400, w.Status, "%+v", w)
		j.refused = true
	default:
		d.heard.open++
		j.doubtful = true
		d.again(w.Job)
	}
}

func (d *driver) again(job int) { d.todo = append(d.todo, job) }

// terminate ends the worker as an init system does. Its letters are in the file then.
func (d *driver) terminate() {
	d.t.Helper()
	require.NoError(d.t, d.cmd.Process.Signal(syscall.SIGTERM))
	d.drain()
	require.NoError(d.t, d.cmd.Wait(), "%s", d.stderr())
	d.afterDeath(false)
}

// kill ends the worker in the middle. Its letters are lost.
func (d *driver) kill() {
	d.t.Helper()
	require.NoError(d.t, d.cmd.Process.Kill())
	d.drain()
	require.Error(d.t, d.cmd.Wait())
	require.NotEmpty(d.t, d.underway, "it was to be killed in the middle")
	d.afterDeath(true)
}

// drain hears the last words.
func (d *driver) drain() {
	d.t.Helper()
	over := time.NewTimer(patienceOfAll)
	defer over.Stop()
	for {
		select {
		case l, alive := <-d.lines:
			if !alive {
				return
			}
			d.hear(l)
		case <-over.C:
			d.t.Fatal("the worker does not end")
		}
	}
}

// afterDeath puts everything without a final word at the head of the queue.
func (d *driver) afterDeath(lettersLost bool) {
	d.t.Helper()
	d.t.Logf("%d words, %d calls without one; so far: %+v", d.words, len(d.underway), d.heard)
	waiting := map[int]bool{}
	for _, i := range d.todo {
		waiting[i] = true
	}
	var first []int
	for i := range d.jobs {
		j := &d.jobs[i]
		if j.underway > 0 {
			j.underway, j.doubtful = 0, true // nobody said a word
		}
		if lettersLost {
			j.doubtful = j.doubtful || j.parked
			j.parked = false
		}
		if !j.final() && !j.parked && j.doubtful && !waiting[i] {
			first = append(first, i)
		}
	}
	d.todo = append(first, d.todo...)
	clear(d.underway)
}

func (d *driver) stats() string {
	if d.last == nil {
		return "no report"
	}
	return d.last.Stats
}

func (d *driver) stderr() string {
	text, _ := os.ReadFile(filepath.Join(d.dir, "stderr"))
	return string(text)
}

// settled reports whether the worker has found out whatever can be found out.
func (d *driver) settled() bool { return d.open() == "" }

// open names something that is not settled yet; "": nothing.
func (d *driver) open() string {
	switch {
	case !d.idle():
		return fmt.Sprintf("%d to do, %d under way", len(d.todo), len(d.underway))
	case d.last == nil:
		return "nothing was reported yet"
	case d.last.Waiting > 0:
		return fmt.Sprintf("%d letters wait", d.last.Waiting)
	}
	rings := d.server.AllRings()
	for i, state := range d.last.States {
		rang := rings[numberOf(i)]
		if state == resilience.KeyClaimed || state == resilience.KeySending || state != resilience.KeyConfirmed && rang > 0 {
			return fmt.Sprintf("%s is %v and rang %d times: %+v", keyOf(i), state, rang, d.jobs[i])
		}
	}
	return ""
}
