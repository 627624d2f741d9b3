//! Memory windows: keys for parts of regions, made and taken back without the daemon's control thread.
use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rnic_abi::{AllocMw, AllocMwReply, Empty, HandleArg, Op};

use crate::mr::Region;
use crate::{MrSlice, Pd, RemoteMr, Result};

/// The type of a memory window: `enum ibv_mw_type`.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum WindowType {
    /// Used through every QP of its PD. A bind changes its key, and waits until nobody uses the old one.
    One = 1,
    /// Used through the QP it was bound on alone. Its owner ([`crate::Batch::local_invalidate`]) or its peer
    /// ([`crate::Wr::invalidate`]) makes it invalid before it is bound anew, with a key byte of the owner's choice.
    Two = 2,
}

/// A memory window: a key of its own, with rights of its own, for a part of a region ([`crate::Batch::bind`]). Cheap to
/// clone; any thread. Freed, and invalid, with its last clone and the operations in flight on it.
///
/// A region that a window is bound to is registered at least as long.
#[derive(Clone)]
pub struct MemoryWindow(Arc<Inner>);

pub(crate) struct Inner {
    pd: Pd,
    handle: u32,
    kind: WindowType,
    /// The key of the last bind.
    key: AtomicU32,
    bound: Mutex<Bound>,
}

/// What the bind added last makes of it.
#[derive(Debug, Default)]
struct Bound {
    remote: Option<RemoteMr>,
    region: Option<Arc<Region>>,
}

impl MemoryWindow {
    pub(crate) fn allocate(pd: &Pd, kind: WindowType) -> Result<MemoryWindow> {
        let body = AllocMw {
            pd: pd.0.handle,
            mw_type: kind as u32,
        };
        let AllocMwReply { handle, rkey } = pd.context().session.control.request(Op::AllocMw, &body)?;
        Ok(MemoryWindow(Arc::new(Inner {
            pd: pd.clone(),
            handle,
            kind,
            key: AtomicU32::new(rkey),
            bound: Mutex::default(),
        })))
    }

    /// Its type.
    pub fn kind(&self) -> WindowType {
        self.0.kind
    }

    /// The key of the bind added last to a batch.
    pub fn rkey(&self) -> u32 {
        self.0.key.load(Ordering::Relaxed)
    }

    /// What a peer needs to use the window as the bind added last will leave it, to be sent to it when that is done; `None`
    /// when there was none, or one to no bytes. (Of a zero-based window the address is to be set to 0.)
    pub fn remote(&self) -> Option<RemoteMr> {
        self.0.bound.lock().unwrap_or_else(PoisonError::into_inner).remote
    }

    pub(crate) fn next_key(&self) -> u32 {
        self.key_with((self.rkey() as u8).wrapping_add(1))
    }

    pub(crate) fn key_with(&self, key_byte: u8) -> u32 {
        self.rkey() & !0xFF | u32::from(key_byte)
    }

    /// Notes a bind under `key`, and returns the region that the window was bound to: it is to be kept until the bind is
    /// done.
    pub(crate) fn rebind(&self, local: Option<&MrSlice>, key: u32) -> Option<Arc<Region>> {
        self.0.key.store(key, Ordering::Relaxed);
        let mut bound = self.0.bound.lock().unwrap_or_else(PoisonError::into_inner);
        bound.remote = local.map(|local| RemoteMr {
            addr: local.addr(),
            rkey: key,
            len: local.len() as u64,
        });
        std::mem::replace(&mut bound.region, local.map(|local| local.region().clone()))
    }
}

impl fmt::Debug for MemoryWindow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MemoryWindow({:?}, rkey {:#x})", self.0.kind, self.rkey())
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let arg = HandleArg {
            handle: self.handle,
            reserved: 0,
        };
        // Before its regions, which are busy as long as it is bound. Nothing to tell anyone: a daemon that is gone has
        // forgotten it.
        let control = &self.pd.context().session.control;
        let _ = control.request::<Empty>(Op::DeallocMw, &arg);
    }
}
