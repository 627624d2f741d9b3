//! Memory windows in schedules: which part of a side's memory each bind opens, what the other side does through it, and
//! which request closes it.
//!
//! Whoever uses a window waits until its bind has completed, and who closes or binds it again until those before are done
//! with it, as programs do. Each waits for a request of the other side that comes earlier in its order than itself in
//! its own, so that no two wait for each other.

use crate::operation::Kind;
use crate::rng::Rng;
use crate::scenario::{
    ATOMIC_BASE, ATOMIC_KEY, Op, Plan, READ_BASE, READ_KEY, READ_REGION, WRITE_BASE, WRITE_KEY,
};
use rnic_transport::{Access, SendFlags, WrOpcode};

/// Key of a side's first window, and from one window to the next. The lowest byte counts the binds of one.
pub(crate) const FIRST_KEY: u32 = 0x20_0001;
pub(crate) const NEXT: u32 = 0x100;
const LAST_KEY: u32 = 0x2F_FFFF;

/// Whether a key is that of a window.
pub(crate) fn is_key(key: u32) -> bool {
    (FIRST_KEY..=LAST_KEY).contains(&key)
}

/// The window of a key.
pub(crate) fn number(key: u32) -> u32 {
    key >> 8
}

/// What the other side may do in a region.
fn remote(region: u32) -> Access {
    match region {
        WRITE_KEY => Access::REMOTE_WRITE.union(Access::FLUSH_GLOBAL),
        ATOMIC_KEY => Access::REMOTE_ATOMIC,
        _ => Access::REMOTE_READ,
    }
}

/// With what rights a region is registered.
pub(crate) fn access(region: u32) -> Access {
    remote(region).union(Access::MW_BIND)
}

/// The rights of a window of a region, as a bind says them.
pub(crate) fn rights(region: u32) -> u64 {
    remote(region).bits().into()
}

/// A window that is bound no more: its last key, and the request that has closed it.
struct Closed {
    key: u32,
    at: usize,
    by_peer: bool,
}

/// Has each side use windows of the other.
pub(crate) fn open(plans: &mut [Plan; 2], rng: &mut Rng) {
    let [a, b] = plans;
    open_own(a, b, rng);
    open_own(b, a, rng);
}

fn open_own(own: &mut Plan, peer: &mut Plan, rng: &mut Rng) {
    let mut closed: Vec<Closed> = Vec::new();
    for at in 0..own.ops.len() {
        if own.ops[at].opcode != WrOpcode::BindMw {
            continue;
        }
        if let Some(free) = closed.iter().position(|closed| closed.at < at) {
            let Closed {
                key,
                at: gone,
                by_peer,
            } = closed.swap_remove(free);
            own.ops[at].value = key + 1;
            own.ops[at].after = by_peer.then_some(gone);
        }
        let last = go_through(own, at, peer, rng);
        closed.extend(close(own, at, peer, last, rng));
    }
}

/// Has the peer use the window that request `at` binds; the last request that does.
fn go_through(own: &mut Plan, at: usize, peer: &mut Plan, rng: &mut Rng) -> Option<usize> {
    let fits =
        |op: &Op| matches!(op.rkey, WRITE_KEY | READ_KEY | ATOMIC_KEY) && op.span() > 0 && !op.is_whole();
    let is_local = |op: &Op| op.kind() == Kind::Local;
    let users: Vec<usize> = (at + 1..peer.ops.len())
        .filter(|user| fits(&peer.ops[*user]) && !is_local(&peer.ops[*user]))
        .collect();
    if users.is_empty() {
        return None;
    }
    let first = rng.pick(&users);
    let (region, addr, span) = (peer.ops[first].rkey, peer.ops[first].addr, peer.ops[first].span());
    let whole = rng.chance(500);
    let bind = &mut own.ops[at];
    (bind.rkey, bind.addr, bind.operands) = (region, addr, (span, rights(region)));
    if whole {
        (bind.addr, bind.operands.0) = match region {
            WRITE_KEY => (WRITE_BASE, own.write_region),
            ATOMIC_KEY => (ATOMIC_BASE, 8 * peer.words[0].len() as u64),
            _ => (READ_BASE, READ_REGION),
        };
    }
    bind.flags = bind.flags.union(SendFlags::SIGNALED);
    let key = bind.value;
    let mut last = first;
    for user in users {
        let also = whole && user > first && peer.ops[user].rkey == region && rng.chance(600);
        if user == first || also {
            (peer.ops[user].rkey, peer.ops[user].after) = (key, Some(at));
            last = user;
        }
    }
    Some(last)
}

/// Has a later request invalidate the window that request `at` binds: of the peer, which used it last with `last`, or of its
/// own side.
fn close(own: &mut Plan, at: usize, peer: &mut Plan, last: Option<usize>, rng: &mut Rng) -> Option<Closed> {
    let key = own.ops[at].value;
    let from = last.map_or(at, |last| last.max(at)) + 1;
    let later = |plan: &Plan, opcode: WrOpcode| {
        let closes = |closer: &usize| {
            let op = &plan.ops[*closer];
            op.opcode == opcode && !is_key(op.value)
        };
        (from..plan.ops.len()).find(closes)
    };
    let by_peer = later(peer, WrOpcode::SendInv).filter(|_| rng.chance(600));
    if let Some(closer) = by_peer {
        let op = &mut peer.ops[closer];
        op.value = key;
        op.after = last.is_none().then_some(at);
        // A READ sent again would find the window gone.
        op.flags = op.flags.union(SendFlags::SIGNALED).union(SendFlags::FENCE);
        own.ops[at].flags = own.ops[at].flags.union(SendFlags::SIGNALED);
        return Some(Closed {
            key,
            at: closer,
            by_peer: true,
        });
    }
    let closer = later(own, WrOpcode::LocalInv)?;
    own.ops[closer].value = key;
    own.ops[closer].after = last;
    if let Some(last) = last {
        peer.ops[last].flags = peer.ops[last].flags.union(SendFlags::SIGNALED);
    }
    Some(Closed {
        key,
        at: closer,
        by_peer: false,
    })
}

/// The key of a window that a request before `at` invalidates, if one does.
pub(crate) fn closed_before(plan: &Plan, at: usize) -> Option<u32> {
    let closes = |op: &&Op| op.opcode == WrOpcode::SendInv && is_key(op.value);
    plan.ops[..at].iter().rev().find(closes).map(|op| op.value)
}
