//! A control thread, and a poll core, that go on when the test says so.

use std::{
    os::fd::OwnedFd,
    path::Path,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use rnic_engine::{
    frame::{FrameBurst, SharedPool},
    port::{Port, PortCaps, PortStats, open_all},
};
use tempfile::TempDir;

use super::{PATIENCE, PORTS, build, one_port, one_port_sections, soft};
use crate::{control::Control, handover::Image, socket};

/// A control thread that is called instead of run.
pub struct HeldControl {
    pub control: Control,
    stop: OwnedFd,
    dir: TempDir,
}

impl HeldControl {
    /// With one port and its neighbours.
    pub fn new(port: &str) -> Self {
        let (ours, _theirs) = one_port();
        let (dir, stop, control) = build(1, &one_port_sections("net_null0", port), move |_| vec![ours]);
        HeldControl { control, stop, dir }
    }

    /// With two ports and `cores` poll cores.
    pub fn with(cores: u16, sections: &str) -> Self {
        let (dir, stop, control) = build(cores, &format!("{PORTS}\n{sections}"), |config| {
            open_all(&soft(config), &[]).unwrap()
        });
        HeldControl { control, stop, dir }
    }

    /// The same, with a gate in the way of its poll core, which is open.
    pub fn gated(sections: &str) -> (Self, Gate) {
        let gate = Gate::default();
        let built = build(1, &format!("{PORTS}\n{sections}"), |config| {
            let mut ports = open_all(&soft(config), &[]).unwrap();
            let queue = ports[0].queues.remove(0);
            ports[0].queues.push(gate.before(queue));
            ports
        });
        let (dir, stop, control) = built;
        (HeldControl { control, stop, dir }, gate)
    }

    /// Passes of the event loop run in another thread while `f` does.
    pub fn serve<R>(&mut self, f: impl FnOnce(&Path) -> R) -> R {
        let done = AtomicBool::new(false);
        let (control, socket) = (&mut self.control, self.dir.path().join("rnicd.sock"));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Acquire) {
                    control.pass(&mut Vec::new());
                }
            });
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| f(&socket)));
            done.store(true, Ordering::Release);
            result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Runs passes until `condition` holds.
    pub fn run_until(&mut self, mut condition: impl FnMut(&Control) -> bool) {
        let start = Instant::now();
        while !condition(&self.control) {
            assert!(start.elapsed() < PATIENCE, "waited in vain");
            self.control.pass(&mut Vec::new());
        }
    }

    /// Leaves everything to the next process.
    pub fn hand_over(self) -> Image {
        self.control.hand_over().unwrap()
    }

    /// Stops the poll cores in order.
    pub fn end(self) {
        socket::wake(&self.stop);
        assert!(self.control.run());
    }
}

/// Holds a poll core up in the midst of its passes, once it is closed; opens when it is dropped.
#[derive(Default)]
pub struct Gate(Arc<Bar>);

/// What stands in the core's way.
#[derive(Default)]
struct Bar {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    closed: bool,
    /// A pass may still be made.
    permit: bool,
    /// A core stands before it.
    waiting: bool,
}

impl Gate {
    /// The same queue behind this gate.
    pub fn before(&self, queue: Box<dyn Port>) -> Box<dyn Port> {
        Box::new(Gated(queue, self.0.clone()))
    }

    /// From now on the core waits for [`Gate::step`]; it does so when this returns.
    pub fn close(&self) {
        self.0.state().closed = true;
        self.await_core();
    }

    /// Lets the core make one pass: the rest of the one it is in, and the beginning of the next.
    pub fn step(&self) {
        let mut state = self.0.state();
        (state.permit, state.waiting) = (true, false);
        drop(state);
        self.0.changed.notify_all();
        self.await_core();
    }

    fn await_core(&self) {
        let state = self.0.state();
        let waits = |state: &mut State| !state.waiting;
        let (state, timeout) = self.0.changed.wait_timeout_while(state, PATIENCE, waits).unwrap();
        drop(state);
        assert!(!timeout.timed_out(), "the core does not come");
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.0.state().closed = false;
        self.0.changed.notify_all();
    }
}

impl Bar {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The core comes along.
    fn pass(&self) {
        let mut state = self.state();
        while state.closed && !state.permit {
            state.waiting = true;
            self.changed.notify_all();
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        (state.permit, state.waiting) = (false, false);
    }
}

/// A queue that each pass of its core looks at, behind a gate.
struct Gated(Box<dyn Port>, Arc<Bar>);

impl Port for Gated {
    fn caps(&self) -> PortCaps {
        self.0.caps()
    }

    fn rx_at_most(&mut self, out: &mut FrameBurst, most: usize) -> usize {
        self.1.pass();
        self.0.rx_at_most(out, most)
    }

    fn tx_burst(&mut self, frames: &mut FrameBurst) -> usize {
        self.0.tx_burst(frames)
    }

    fn pool(&self) -> &SharedPool {
        self.0.pool()
    }

    fn stats(&self) -> PortStats {
        self.0.stats()
    }

    fn tick(&mut self, now_ns: u64) {
        self.0.tick(now_ns);
    }
}
