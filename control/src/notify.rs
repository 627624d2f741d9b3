//! What systemd is told. Without systemd nothing is sent.

use std::time::{Duration, Instant};

use rnic_engine::nonblocking::might_block;
use sd_notify::NotifyState;

/// Between status lines.
const STATUS_EVERY: Duration = Duration::from_secs(5);

/// Tells systemd that the daemon is ready, alive and stopping.
#[derive(Debug)]
pub struct Notifier {
    enabled: bool,
    /// Half of what the unit's WatchdogSec allows.
    watchdog: Option<Duration>,
    next: Instant,
    next_status: Instant,
}

impl Notifier {
    /// As the environment says.
    pub fn new(now: Instant) -> Self {
        Notifier {
            enabled: std::env::var_os("NOTIFY_SOCKET").is_some(),
            watchdog: sd_notify::watchdog_enabled().map(|interval| interval / 2),
            next: now,
            next_status: now,
        }
    }

    /// Clients can connect.
    pub fn ready(&self) {
        self.send(&[NotifyState::Ready]);
    }

    /// The daemon was told to stop.
    pub fn stopping(&self) {
        self.send(&[NotifyState::Stopping]);
    }

    /// Called in each pass of the event loop.
    pub fn tick(&mut self, now: Instant, status: impl FnOnce() -> String) {
        if !self.enabled {
            return;
        }
        if let Some(interval) = self.watchdog
            && now >= self.next
        {
            self.next = now + interval;
            self.send(&[NotifyState::Watchdog]);
        }
        if now >= self.next_status {
            self.next_status = now + STATUS_EVERY;
            self.send(&[NotifyState::Status(&status())]);
        }
    }

    /// When the next tick is due.
    pub fn deadline(&self) -> Option<Instant> {
        self.enabled.then(|| {
            self.watchdog
                .map_or(self.next_status, |_| self.next.min(self.next_status))
        })
    }

    fn send(&self, state: &[NotifyState<'_>]) {
        might_block();
        if self.enabled
            && let Err(error) = sd_notify::notify(state)
        {
            tracing::debug!(%error, "systemd was not told");
        }
    }
}
