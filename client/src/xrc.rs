//! Extended reliable connections: domains, and the QPs that serve them.
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rnic_abi::{DeviceArg, Empty, HandleArg, Op, OpenQp, OpenQpReply, OpenXrcd, OpenXrcdReply, xrcd_flags};

use crate::connect::Side;
use crate::qp::{modify, unpredictable_psn};
use crate::session::Session;
use crate::{ConnectOptions, Context, Endpoint, QpAttr, QpChange, QpState, Result};

/// An XRC domain, as this client holds it: SRQs ([`Pd::create_xrc_srq`](crate::Pd::create_xrc_srq)) and the [`TargetQp`]s
/// through which peers send to them, perhaps to those of other processes. Cheap to clone; any thread. Let go of when the
/// last clone, SRQ and target QP of this client are gone; it ends with its last holder.
#[derive(Clone, Debug)]
pub struct Xrcd(Arc<XrcdInner>);

#[derive(Debug)]
struct XrcdInner {
    context: Context,
    handle: u32,
    number: u32,
}

/// Whether a file has to stand for an XRC domain already: the `oflags` of `ibv_open_xrcd`.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum XrcdOpen {
    /// It has to: else the errno is ENOENT.
    Existing,
    /// It may; else a domain is made (`O_CREAT`).
    Create,
    /// It must not: else the errno is EEXIST (`O_CREAT | O_EXCL`).
    CreateNew,
}

impl Xrcd {
    pub(crate) fn open(context: &Context, file: BorrowedFd<'_>, how: XrcdOpen) -> Result<Xrcd> {
        let body = OpenXrcd {
            device: context.device,
            flags: match how {
                XrcdOpen::Existing => 0,
                XrcdOpen::Create => xrcd_flags::CREATE,
                XrcdOpen::CreateNew => xrcd_flags::CREATE | xrcd_flags::EXCLUSIVE,
            },
        };
        let control = &context.session.control;
        let (reply, _) = control.request_with(Op::OpenXrcd, &body, Some(file))?;
        Ok(Xrcd::of(context, reply))
    }

    pub(crate) fn alloc(context: &Context) -> Result<Xrcd> {
        let body = DeviceArg {
            device: context.device,
            reserved: 0,
        };
        let reply = context.session.control.request(Op::AllocXrcd, &body)?;
        Ok(Xrcd::of(context, reply))
    }

    fn of(context: &Context, reply: OpenXrcdReply) -> Xrcd {
        Xrcd(Arc::new(XrcdInner {
            context: context.clone(),
            handle: reply.handle,
            number: reply.xrcdn,
        }))
    }

    /// The context it was opened in.
    pub fn context(&self) -> &Context {
        &self.0.context
    }

    /// Its number, the same for all who hold it.
    pub fn number(&self) -> u32 {
        self.0.number
    }

    pub(crate) fn handle(&self) -> u32 {
        self.0.handle
    }

    /// Makes a target QP, in the state RESET. Others of the domain may open it.
    pub fn create_target(&self) -> Result<TargetQp> {
        let arg = HandleArg {
            handle: self.0.handle,
            reserved: 0,
        };
        let reply = self.session().control.request(Op::CreateXrcTgt, &arg)?;
        Ok(TargetQp::of(self, reply))
    }

    /// Opens a target QP of the domain, whoever made it: it lives as long as anyone holds it.
    pub fn open_target(&self, qpn: u32) -> Result<TargetQp> {
        let body = OpenQp {
            xrcd: self.0.handle,
            qpn,
        };
        let reply = self.session().control.request(Op::OpenQp, &body)?;
        Ok(TargetQp::of(self, reply))
    }

    fn session(&self) -> &Session {
        &self.0.context.session
    }
}

impl Drop for XrcdInner {
    fn drop(&mut self) {
        let arg = HandleArg {
            handle: self.handle,
            reserved: 0,
        };
        // Nothing to tell anyone: a daemon that is gone has closed it.
        let _ = self.context.session.control.request::<Empty>(Op::CloseXrcd, &arg);
    }
}

/// The receiving half of an extended reliable connection, as this client holds it. It has no queue: a request of the peer
/// names an SRQ of the domain, whose owner gets the completion. Its events are told to everyone who holds it.
///
/// Dropping it lets go of it; it is destroyed with its last holder. Any thread.
#[derive(Debug)]
pub struct TargetQp {
    xrcd: Xrcd,
    handle: u32,
    qpn: u32,
    initial_psn: u32,
    destroyed: AtomicBool,
}

impl TargetQp {
    fn of(xrcd: &Xrcd, reply: OpenQpReply) -> TargetQp {
        TargetQp {
            xrcd: xrcd.clone(),
            handle: reply.handle,
            qpn: reply.qpn,
            initial_psn: unpredictable_psn(reply.qpn),
            destroyed: AtomicBool::new(false),
        }
    }

    /// Its number on the wire and in events, 24 bits.
    pub fn qpn(&self) -> u32 {
        self.qpn
    }

    /// Its domain.
    pub fn xrcd(&self) -> &Xrcd {
        &self.xrcd
    }

    /// What the peer needs to connect its initiator to this QP.
    pub fn endpoint(&self, options: &ConnectOptions) -> Result<Endpoint> {
        Endpoint::of(self.xrcd.context(), self.qpn, self.initial_psn, options)
    }

    /// RESET → INIT. [`TargetQp::connect`] does it too.
    pub fn init(&self, options: &ConnectOptions) -> Result<()> {
        let (state, mask, attrs) = options.init_transition();
        self.modify(QpChange { mask, attrs }.state(state))
    }

    /// RESET or INIT → RTR → RTS, connected to the peer's initiator. One of those who hold it does so.
    pub fn connect(&self, peer: &Endpoint, options: &ConnectOptions) -> Result<()> {
        let ours = self.endpoint(options)?;
        let transitions = options.transitions(self.xrcd.context(), Side::TARGET, &ours, peer)?;
        if self.query()?.state == QpState::Reset {
            self.init(options)?;
        }
        for (state, mask, attrs) in transitions {
            self.modify(QpChange { mask, attrs }.state(state))?;
        }
        Ok(())
    }

    /// Moves it to the error state, for all who hold it.
    pub fn fail(&self) -> Result<()> {
        self.modify(QpChange::to(QpState::Error))
    }

    /// Moves it to RESET, for all who hold it.
    pub fn reset(&self) -> Result<()> {
        self.modify(QpChange::to(QpState::Reset))
    }

    /// Its state as the daemon has it, with the cause if it failed.
    pub fn query(&self) -> Result<QpAttr> {
        QpAttr::query(self.xrcd.session(), self.handle)
    }

    /// Lets go of it now, as dropping does, and tells whether that worked.
    pub fn destroy(self) -> Result<()> {
        self.destroyed.store(true, Ordering::Relaxed);
        self.xrcd.session().destroy(Op::DestroyQp, self.handle)
    }

    /// Changes its state or attributes, for all who hold it, as [`Qp::modify`](crate::Qp::modify) does.
    pub fn modify(&self, change: QpChange) -> Result<()> {
        modify(self.xrcd.session(), self.handle, change)
    }
}

impl Drop for TargetQp {
    fn drop(&mut self) {
        if !self.destroyed.load(Ordering::Relaxed) {
            // Nothing to tell anyone: a daemon that is gone has destroyed it.
            let _ = self.xrcd.session().destroy(Op::DestroyQp, self.handle);
        }
    }
}
