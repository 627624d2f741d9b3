//! A client that means harm.
#![allow(dead_code)] // each test binary uses its own part
use std::time::Duration;

use rnic_abi::{HandleArg, Op, QueryQpReply, RegMrReply, Wqe, wqe_flags};
use rnic_tests::raw::{QueuePair, Verbs, memfd, pair, write};
use rnic_tests::{Scene, Setup, poll_until};
use rustix::fs::SealFlags;

/// Bytes of either's region.
pub const LEN: u32 = 64 << 10;
/// Address of either's region.
pub const BASE: u64 = 0x5000_0000;

/// Paths between the QPs of one appliance.
pub const PATHS: [&str; 2] = ["wire", "direct"];

/// Bystanders, and an appliance that gives each client so little that all of it can be written over in no time.
pub fn scene(cores: u32, loopback: &str) -> Scene {
    let limits = "limits: { per_client: { qps: 16, cqs: 8, mrs: 16, pds: 4, queue_memory: 256KiB, wr_depth: 256, \
                  cq_depth: 256 } }";
    let setup = Setup::back_to_back().cores(cores);
    Scene::on(&setup.with(limits).with_ports(&format!("loopback: {loopback}")))
}

/// A client that means harm, connected to a harmless one.
pub struct Villain {
    pub own: Verbs,
    pub qp: QueuePair,
    pub mr: RegMrReply,
    /// Its peer; the region it may write.
    pub peer: Verbs,
    pub target: RegMrReply,
}

impl Villain {
    /// Enters the scene.
    pub fn enter(scene: &Scene) -> Villain {
        let [(mut own, qp), (mut peer, _)] = pair(&scene.socket, 16);
        let [ours, theirs] = [0, 1].map(|_| memfd(u64::from(LEN), SealFlags::SHRINK, false).unwrap());
        let mr = own.mr(&ours, LEN.into(), BASE);
        let target = peer.mr(&theirs, LEN.into(), BASE);
        Villain {
            own,
            qp,
            mr,
            peer,
            target,
        }
    }

    /// A WRITE that is right.
    pub fn write(&self, id: u64, length: u32) -> Wqe {
        write(id, BASE, length, self.mr.lkey, BASE, self.target.rkey)
    }

    pub fn post(&self, wqe: &Wqe) {
        self.own.post(&self.qp, self.qp.sq, wqe);
    }

    /// The peer sends a message: so many bytes of its region.
    pub fn receive_from_peer(&self, length: u32) {
        let qp = self.peer.qps[0];
        let mut wqe = write(5, BASE, length, self.target.lkey, 0, 0);
        wqe.opcode = 2;
        self.peer.post(&qp, qp.sq, &wqe);
    }

    pub fn state(&mut self) -> u8 {
        let arg = HandleArg {
            handle: self.qp.made.handle,
            reserved: 0,
        };
        let reply: QueryQpReply = self.own.line.request(Op::QueryQp, &arg, &[]).body();
        reply.attrs.qp_state
    }

    /// Waits until the QP is in the error state.
    pub fn assert_fails(&mut self, what: &str) {
        let failed = poll_until(Duration::from_secs(10), || (self.state() == 6).then_some(()));
        assert!(failed.is_some(), "{what}: the QP is in state {}", self.state());
    }
}

/// A receive of so many bytes at the start of a region.
pub fn receive(wr_id: u64, length: u32, lkey: u32) -> Wqe {
    let mut wqe = write(wr_id, BASE, length, lkey, 0, 0);
    wqe.flags &= !wqe_flags::SIGNALED;
    wqe
}
