//! What a core does when there is nothing to do.
use std::{
    mem::MaybeUninit,
    sync::atomic::{Ordering, fence},
};

use rnic_transport::Time;
use rustix::{
    event::{Timespec, epoll},
    io::read,
};

use super::run::Core;

/// Idle passes between two yields.
const PASSES_BEFORE_YIELD: u64 = 16;

/// The idle policy.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Idle {
    /// Spin at full speed.
    Spin,
    /// Spin with pause instructions: kinder to a hyper-thread.
    Pause,
    /// Spin for a while, then sleep until a doorbell, a timer or `max_sleep_ns`. Ports that cannot wake the core
    /// are looked at once every `max_sleep_ns`.
    Sleep {
        /// Nanoseconds without work before the first sleep.
        spin_for_ns: u64,
        /// Longest sleep in nanoseconds.
        max_sleep_ns: u64,
    },
}

impl Core {
    /// Called after a pass without work.
    pub(super) fn rest(&mut self) {
        match self.idle {
            Idle::Spin => {}
            Idle::Pause => std::hint::spin_loop(),
            Idle::Sleep {
                spin_for_ns,
                max_sleep_ns,
            } => {
                let idle_for = self.env.now.0.saturating_sub(self.last_work.0);
                if idle_for < spin_for_ns || !self.active.is_empty() || self.something_waits() {
                    self.give_way();
                } else {
                    self.sleep(max_sleep_ns);
                }
            }
        }
    }

    /// Spins, and now and then lets another thread of the same CPU run: where this policy is chosen there may be
    /// fewer CPUs than threads, and the one that is waiting may be the client this core waits for.
    fn give_way(&self) {
        if self.passes.is_multiple_of(PASSES_BEFORE_YIELD) {
            rustix::thread::sched_yield();
        } else {
            std::hint::spin_loop();
        }
    }

    /// Whether something is only waiting for room elsewhere, which nobody announces.
    fn something_waits(&self) -> bool {
        let waits = |port: &u16| !self.ports[usize::from(*port)].tx.is_empty();
        self.port_list.iter().any(waits) || !self.eventful.is_empty() || self.retired_waiting()
    }

    fn sleep(&mut self, max_sleep_ns: u64) {
        let me = self.me.clone();
        me.sleeping.store(true, Ordering::Relaxed);
        for &client in &self.client_list {
            if let Some(doorbells) = &self.clients[client as usize] {
                doorbells.announce_sleep();
            }
        }
        // Whoever queues something after this fence sees `sleeping`; whatever was queued before it is seen here.
        fence(Ordering::SeqCst);
        let rung = |core: &Self| {
            core.client_list
                .iter()
                .any(|c| core.clients[*c as usize].as_ref().is_some_and(|d| d.pending()))
        };
        if self.orders.is_empty() && me.inbound.is_empty() && !rung(self) {
            let next = self.timers.next().unwrap_or(Time::NEVER).min(self.wake_due);
            let timeout = next.0.saturating_sub(self.env.now.0).min(max_sleep_ns);
            self.publish();
            self.view.release();
            self.participant.offline();
            self.wait(timeout);
            self.participant.online();
            self.view.acquire();
        }
        me.sleeping.store(false, Ordering::Relaxed);
        for &client in &self.client_list {
            if let Some(doorbells) = &self.clients[client as usize] {
                doorbells.announce_wake();
            }
        }
    }

    fn wait(&self, timeout_ns: u64) {
        let mut events = [MaybeUninit::<epoll::Event>::uninit(); 8];
        let timeout = Timespec {
            tv_sec: (timeout_ns / 1_000_000_000) as i64,
            tv_nsec: (timeout_ns % 1_000_000_000) as i64,
        };
        let woken = epoll::wait(&self.me.epoll, &mut events[..], Some(&timeout));
        if matches!(woken, Ok((ready, _)) if !ready.is_empty()) {
            let _ = read(&self.me.wake, &mut [0u8; 8]);
            for &client in &self.client_list {
                if let Some(doorbells) = &self.clients[client as usize] {
                    doorbells.drain_wakes();
                }
            }
        }
    }
}
