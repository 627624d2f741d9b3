//! Work of registry clients that runs on a thread of its own, by device: what is queued for a device is cancelled or
//! finished before the client counts as removed from it.

use std::collections::{BTreeSet, VecDeque};

use super::primitive::{Arc, Class, Condvar, OrderedMutex, Section, ThreadId, current_thread, might_take};

/// Something to be done once.
pub type Task = Box<dyn FnOnce() + Send>;

/// The lock of a queue. A leaf: nothing is taken under it.
const QUEUE: Class = Class::new("work queue");
/// What tasks run under, and what those who wait for them take. That a removal holds a lock which a task wants is
/// found the first time either happens.
const TASK: Class = Class::new("registry work");

/// The device's work was cancelled or flushed: it takes no more.
#[derive(Copy, Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the client is being removed from this device; it takes no more work")]
pub struct Detached;

/// A queue of tasks that one thread carries out in order. Each registry client that has work off the control thread
/// has one of its own.
#[derive(Clone)]
pub struct WorkQueue {
    shared: Arc<Shared>,
}

struct Shared {
    state: OrderedMutex<State>,
    /// Something was queued, has ended, or the queue stops.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    tasks: VecDeque<(u64, Task)>,
    /// Whose task runs.
    running: Option<u64>,
    /// The thread that runs it.
    runner: Option<ThreadId>,
    /// Works that take tasks.
    open: BTreeSet<u64>,
    next: u64,
    stopped: bool,
}

impl State {
    fn has(&self, id: u64) -> bool {
        self.running == Some(id) || self.tasks.iter().any(|(of, _)| *of == id)
    }
}

impl WorkQueue {
    /// An empty queue, which [`WorkQueue::run`] is to serve.
    #[allow(clippy::new_without_default, reason = "a queue without a thread is of no use")]
    pub fn new() -> Self {
        WorkQueue {
            shared: Arc::new(Shared {
                state: OrderedMutex::new(QUEUE, State::default()),
                changed: Condvar::new(),
            }),
        }
    }

    /// Carries out tasks on this thread until [`WorkQueue::stop`].
    pub fn run(&self) {
        loop {
            let state = self.shared.state.lock();
            let idle = |state: &mut State| state.tasks.is_empty() && !state.stopped;
            let mut state = state.wait_while(&self.shared.changed, idle);
            if state.stopped {
                return;
            }
            let Some((id, task)) = state.tasks.pop_front() else {
                continue;
            };
            (state.running, state.runner) = (Some(id), Some(current_thread()));
            drop(state);
            let _ended = Ended(&self.shared);
            let _section = Section::enter(TASK);
            task();
        }
    }

    /// Says that its caller may wait for the thread that runs the tasks.
    #[track_caller]
    pub(super) fn might_wait() {
        might_take(TASK);
    }

    /// Drops what is queued and ends [`WorkQueue::run`].
    pub fn stop(&self) {
        let mut state = self.shared.state.lock();
        state.stopped = true;
        state.open.clear();
        let dropped = std::mem::take(&mut state.tasks);
        drop(state);
        self.shared.changed.notify_all();
        drop(dropped);
    }

    /// The work of one more device.
    pub fn attach(&self) -> Work {
        let mut state = self.shared.state.lock();
        let id = state.next;
        state.next += 1;
        if !state.stopped {
            state.open.insert(id);
        }
        drop(state);
        Work {
            id,
            shared: self.shared.clone(),
        }
    }
}

/// However a task ends, those who wait for it go on.
struct Ended<'a>(&'a Shared);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        (state.running, state.runner) = (None, None);
        drop(state);
        self.0.changed.notify_all();
    }
}

/// A registry client's work on one device.
pub struct Work {
    id: u64,
    shared: Arc<Shared>,
}

impl Work {
    /// Queues a task. Any thread.
    ///
    /// # Errors
    /// [`Detached`] after [`Work::cancel`] or [`Work::flush`]; the task is dropped.
    pub fn submit(&self, task: impl FnOnce() + Send + 'static) -> Result<(), Detached> {
        let task: Task = Box::new(task);
        let mut state = self.shared.state.lock();
        if !state.open.contains(&self.id) {
            return Err(Detached);
        }
        state.tasks.push_back((self.id, task));
        drop(state);
        self.shared.changed.notify_all();
        Ok(())
    }

    /// Takes no more work, drops what has not begun and waits for what runs: when it returns, nothing of this work
    /// runs or will run. Called by a task of the same queue, it does not wait for that task.
    pub fn cancel(&self) {
        self.close(|state, id| {
            let (dropped, kept) = std::mem::take(&mut state.tasks)
                .into_iter()
                .partition(|(of, _)| *of == id);
            state.tasks = kept;
            dropped
        });
    }

    /// Takes no more work and waits until all that was queued has been done; a task of the same queue does not wait.
    pub fn flush(&self) {
        self.close(|_, _| VecDeque::new());
    }

    fn close(&self, take: impl FnOnce(&mut State, u64) -> VecDeque<(u64, Task)>) {
        // On the queue's own thread there is nothing to wait for but itself.
        let waits = self.shared.state.lock().runner != Some(current_thread());
        if waits {
            might_take(TASK);
        }
        let id = self.id;
        let mut state = self.shared.state.lock();
        state.open.remove(&id);
        let dropped = take(&mut state, id);
        if waits {
            // A queue that stops has dropped its tasks; only what runs is left.
            state = state.wait_while(&self.shared.changed, |state| state.has(id));
        }
        drop(state);
        // What tasks own is dropped here, under no lock.
        drop(dropped);
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        self.cancel();
    }
}

impl std::fmt::Debug for Work {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Work({})", self.id)
    }
}
