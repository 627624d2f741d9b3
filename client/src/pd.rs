//! Protection domains.
use std::sync::Arc;

use rnic_abi::{Empty, HandleArg, Op};

use crate::{
    Access, AddressVector, Ah, Completion, Context, Cq, Error, MemoryWindow, Mr, MrSlice, Qp, QpConfig,
    Result, Srq, WindowType, Xrcd,
};

/// A protection domain: QPs use the memory regions of their own domain only. Cheap to clone; any thread. Freed
/// when the last clone, region and QP of it are gone.
#[derive(Clone, Debug)]
pub struct Pd(pub(crate) Arc<PdInner>);

#[derive(Debug)]
pub(crate) struct PdInner {
    pub context: Context,
    pub handle: u32,
}

impl Pd {
    pub(crate) fn new(context: Context, handle: u32) -> Pd {
        Pd(Arc::new(PdInner { context, handle }))
    }

    /// The context it was made from.
    pub fn context(&self) -> &Context {
        &self.0.context
    }

    /// Allocates `len` bytes of zeroed memory (at least one) and registers them.
    pub fn alloc_mr(&self, len: usize, access: Access) -> Result<Mr> {
        Mr::allocate(self, len, access)
    }

    /// Makes a memory window, not bound to anything.
    pub fn alloc_mw(&self, kind: WindowType) -> Result<MemoryWindow> {
        MemoryWindow::allocate(self, kind)
    }

    /// Makes an address handle. The daemon finds the MAC address of the next hop first, which takes up to three
    /// seconds when nobody answers; then the errno is EHOSTUNREACH.
    pub fn create_ah(&self, vector: &AddressVector) -> Result<Ah> {
        Ah::create(self, vector, 0)
    }

    /// The same without waiting: when the MAC address is not known the errno is EAGAIN and the daemon asks for it
    /// meanwhile; when it was asked for and nobody has answered, EHOSTUNREACH.
    pub fn create_ah_now(&self, vector: &AddressVector) -> Result<Ah> {
        Ah::create(self, vector, Ah::AT_ONCE)
    }

    /// Makes a shared receive queue for at least `max_wr` receives of up to `max_sge` scatter/gather entries.
    pub fn create_srq(&self, max_wr: u32, max_sge: u32) -> Result<Srq> {
        Srq::create(self, max_wr, max_sge)
    }

    /// Makes an XRC SRQ of a domain: initiators send to it, by its number, through the domain's target QPs. Its receives, for
    /// which all else is as in [`Pd::create_srq`], complete to `cq`; the keys of requests that name it must be of this
    /// protection domain.
    pub fn create_xrc_srq(&self, xrcd: &Xrcd, cq: &Cq, max_wr: u32, max_sge: u32) -> Result<Srq> {
        Srq::create_xrc(self, xrcd, cq, max_wr, max_sge)
    }

    /// Makes an address handle back to the sender of a datagram, from where it was received: `received` begins with the
    /// GRH area. Waits as [`Pd::create_ah`] does.
    pub fn create_ah_from_wc(&self, completion: &Completion, received: &MrSlice) -> Result<Ah> {
        let mut grh = [0; 40];
        if !completion.has_grh || received.len() < grh.len() {
            let message = "a datagram's completion and what it was received into are needed";
            return Err(Error::InvalidArgument(message.into()));
        }
        received.read_at(0, &mut grh);
        self.create_ah(&AddressVector::from_grh(self.context(), &grh)?)
    }

    /// Makes a QP in the state RESET.
    pub fn create_qp(&self, config: QpConfig) -> Result<Qp> {
        Qp::create(self, config)
    }
}

impl Drop for PdInner {
    fn drop(&mut self) {
        let arg = HandleArg {
            handle: self.handle,
            reserved: 0,
        };
        // Nothing to tell anyone: a daemon that is gone has freed it.
        let _ = self.context.session.control.request::<Empty>(Op::DeallocPd, &arg);
    }
}
