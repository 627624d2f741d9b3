//! A device as the registry knows it.

use std::{
    fmt,
    sync::atomic::{AtomicU8, Ordering},
};

/// Names a device for the life of the daemon: a slot, and how often it was given out before.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeviceId {
    /// Index among the devices, which is the port's too.
    pub slot: u16,
    /// Devices the slot had before this one, modulo 4096.
    pub generation: u16,
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.slot, self.generation)
    }
}

/// Whether a device may be used. It only ever goes forward.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum DeviceState {
    /// It may.
    Present,
    /// It is being removed: nothing new may be begun on it.
    Removing,
    /// Its port is closed.
    Gone,
}

/// A device. References to it say only when its memory may be freed; whether it may be used is its state.
#[derive(Debug)]
pub struct Entry {
    /// Its number.
    pub id: DeviceId,
    /// Its name.
    pub name: String,
    /// The kernel interface behind its port, if there is one.
    pub if_index: Option<u32>,
    state: AtomicU8,
}

impl Entry {
    /// A device that is present.
    pub fn new(id: DeviceId, name: &str, if_index: Option<u32>) -> Self {
        Entry {
            id,
            name: name.to_owned(),
            if_index,
            state: AtomicU8::new(DeviceState::Present as u8),
        }
    }

    /// Its state, now. A removal that this does not show yet waits for the work of the client who asks.
    pub fn state(&self) -> DeviceState {
        match self.state.load(Ordering::Acquire) {
            0 => DeviceState::Present,
            1 => DeviceState::Removing,
            _ => DeviceState::Gone,
        }
    }

    /// Whether it may be used.
    pub fn is_present(&self) -> bool {
        self.state() == DeviceState::Present
    }

    /// Moves it on; `false` when it is there or beyond already.
    pub(super) fn advance(&self, to: DeviceState) -> bool {
        self.state.fetch_max(to as u8, Ordering::AcqRel) < to as u8
    }
}
