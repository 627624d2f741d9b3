//! What a port's handles share, and how it ends.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::eal::Eal;
use crate::error::Error;
use crate::ffi;
use crate::interrupt::close_port;
use crate::mempool::Mempool;
use crate::removal;
use crate::ring::RingEnd;

/// What the port and its queue handles share.
pub(crate) struct PortShared {
    pub(super) id: u16,
    pub(super) name: String,
    pub(super) eal: Eal,
    control: Mutex<Control>,
}

/// What control calls may do at the moment. Where its lock and that of the claimed ports are both
/// taken, its own comes first.
#[derive(Default)]
pub(super) struct Control {
    pub(super) started: bool,
    pub(super) closed: bool,
    pub(super) rx: Vec<Queue>,
    pub(super) tx: Vec<Queue>,
    /// Buffers of these pools may be in the device until it is closed.
    pub(super) pools: Vec<Mempool>,
    /// For ports made from rings: goes away after the port.
    _rings: Option<RingEnd>,
}

#[derive(Default)]
pub(super) struct Queue {
    pub(super) set_up: bool,
    /// The queue's handle, if there is one, holds a clone.
    pub(super) lease: Arc<()>,
}

impl PortShared {
    pub(super) fn new(eal: &Eal, id: u16, name: &str, rings: Option<RingEnd>) -> Self {
        let control = Mutex::new(Control {
            _rings: rings,
            ..Control::default()
        });
        removal::forget(id);
        PortShared {
            id,
            name: name.to_owned(),
            eal: eal.clone(),
            control,
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Control> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for PortShared {
    fn drop(&mut self) {
        let mut control = std::mem::take(self.control.get_mut().unwrap_or_else(PoisonError::into_inner));
        if control.closed {
            return;
        }
        removal::unwatch(self.id);
        let mut claimed = self.eal.claimed();
        // SAFETY: the port is open, and neither the port nor a queue handle is left to use it.
        unsafe {
            if control.started {
                ffi::rte_eth_dev_stop(self.id);
            }
            close_port(&self.name, ffi::rte_eth_dev_close, self.id);
        }
        control.release(self.id, &mut claimed);
    }
}

impl Control {
    /// Lets go of what the open port held, now that it is closed.
    pub(super) fn release(&mut self, id: u16, claimed: &mut BTreeSet<u16>) {
        *self = Control {
            closed: true,
            ..Control::default()
        };
        claimed.remove(&id);
    }

    /// Fails while queue handles are out.
    pub(super) fn refuse_held(&mut self, action: &'static str, port: &str) -> Result<(), Error> {
        let queues = self.rx.iter_mut().chain(&mut self.tx);
        match queues.map(Queue::is_held).filter(|&held| held).count() {
            0 => Ok(()),
            held => Err(Error::QueuesHeld {
                action,
                port: port.to_owned(),
                held,
            }),
        }
    }

    /// Keeps a pool until the port is closed.
    pub(super) fn keep(&mut self, pool: &Mempool) {
        if !self.pools.iter().any(|kept| kept.raw() == pool.raw()) {
            self.pools.push(pool.clone());
        }
    }
}

impl Queue {
    /// Whether a handle is out. If not, all that was done through the last one happened before.
    pub(super) fn is_held(&mut self) -> bool {
        Arc::get_mut(&mut self.lease).is_none()
    }
}
