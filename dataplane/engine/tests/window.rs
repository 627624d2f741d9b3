//! Memory windows on poll cores: who may use them, what a bind waits for (DESIGN I9), and what their region waits for.
mod common;

use common::{
    PD, Rig,
    hold::{two_cores, until},
    path, wqe,
};
use rnic_abi::{BindOperands, FlushOperands, Sge, Wqe};
use rnic_engine::mem::{By, MrDescriptor, MrTable, WindowType};
use rnic_engine::view::number;
use rnic_transport::{Access, KeyError};
use rnic_wire::Mtu;

const WRITE: u8 = 0;
const SEND_INV: u8 = 9;
const LOCAL_INV: u8 = 7;
const BIND_MW: u8 = 8;
const FLUSH: u8 = 14;
const ATOMIC_WRITE: u8 = 15;
/// `IBV_WC_*`.
const SUCCESS: u8 = 0;
const MW_BIND_ERR: u8 = 6;
const REM_ACCESS_ERR: u8 = 10;
/// `IBV_WC_BIND_MW`.
const BOUND: u8 = 5;

/// A region of all of the rig's data, for windows.
fn region(rig: &Rig) -> u32 {
    let key = MrTable::key(5, 1, 0x11);
    let access = [Access::LOCAL_WRITE, Access::MW_BIND, Access::FLUSH_GLOBAL];
    let descriptor = MrDescriptor {
        mem: &rig.data,
        pd: PD,
        access: access.into_iter().fold(Access::NONE, Access::union),
        iova: 0,
        len: rig.data.len() as u64,
        invalidatable: true,
    };
    assert!(rig.engine.mrs().validate(key, &descriptor));
    key
}

/// A window; its number.
fn window(rig: &Rig, kind: WindowType) -> u32 {
    let number = number(6, 1);
    rig.engine.mrs().alloc_window(number, kind, PD).unwrap();
    number
}

/// Two connected QPs of the first core.
fn pair(rig: &mut Rig, slots: [u32; 2]) -> (usize, usize) {
    let [a, b] = slots.map(|slot| rig.create_qp(slot));
    rig.connect(a, b, path(1, 1, true), path(1, 1, true), Mtu::M1024);
    (a, b)
}

fn bind(wr_id: u64, key: u32, region: u32, addr: u64, length: u64) -> Wqe {
    let access = Access::REMOTE_WRITE.union(Access::FLUSH_GLOBAL).bits().into();
    let operands = BindOperands {
        length,
        access,
        reserved: 0,
    };
    let mut head = Wqe {
        num_sge: 0,
        imm_or_rkey: key,
        ..wqe(wr_id, BIND_MW, Sge::default(), addr, region)
    };
    head.sges[1] = operands.into();
    head
}

fn naming(opcode: u8, key: u32) -> Wqe {
    Wqe {
        num_sge: 0,
        imm_or_rkey: key,
        ..wqe(9, opcode, Sge::default(), 0, 0)
    }
}

/// The completion's number, status and opcode.
fn done(rig: &mut Rig, qp: usize) -> (u64, u8, u8) {
    let cqe = rig.wait_cqe(qp);
    (cqe.wr_id, cqe.status, cqe.opcode)
}

/// Writes through the window from the other side of the connection; the status.
fn write(rig: &mut Rig, from: usize, key: u32, addr: u64) -> u8 {
    let sge = rig.sge(0, 8);
    rig.post_send(from, wqe(3, WRITE, sge, addr, key));
    rig.wait_cqe(from).status
}

#[test]
fn a_window_of_type_2_is_bound_at_once_and_used_through_its_qp_alone() {
    let (mut rig, hold) = two_cores();
    let (a, b) = pair(&mut rig, [10, 12]);
    let (c, _d) = pair(&mut rig, [14, 16]);
    let (region, window) = (region(&rig), window(&rig, WindowType::Two));
    let key = window << 8 | 7;
    hold.hold();
    rig.post_send(b, bind(1, key, region, 4096, 512));
    assert_eq!(
        done(&mut rig, b),
        (1, SUCCESS, BOUND),
        "it need not wait for the other core"
    );
    assert_eq!(write(&mut rig, a, key, 4096 + 504), SUCCESS);
    // Bound again only when it has been invalidated, which waits for nobody either.
    rig.post_send(b, naming(LOCAL_INV, key));
    assert_eq!(rig.wait_cqe(b).status, SUCCESS);
    rig.post_send(b, bind(2, key + 1, region, 0, 64));
    assert_eq!(done(&mut rig, b), (2, SUCCESS, BOUND));
    assert_eq!(
        rig.engine.mrs().binding(window).unwrap().qpn,
        Some(rig.qps[b].qpn)
    );
    hold.release();
    assert_eq!(
        write(&mut rig, c, key + 1, 0),
        REM_ACCESS_ERR,
        "another QP of the PD"
    );
    assert_eq!(write(&mut rig, a, key, 0), REM_ACCESS_ERR, "the key byte before");
    rig.engine.stop();
}

#[test]
fn a_bind_of_type_1_is_done_when_nobody_uses_the_old_range_any_more() {
    let (mut rig, hold) = two_cores();
    let (a, b) = pair(&mut rig, [10, 12]);
    let (c, d) = pair(&mut rig, [14, 16]);
    let (region, window) = (region(&rig), window(&rig, WindowType::One));
    let key = window << 8 | 1;
    rig.post_send(b, bind(1, key, region, 4096, 512));
    assert_eq!(done(&mut rig, b), (1, SUCCESS, BOUND));
    assert_eq!(
        write(&mut rig, c, key, 4096),
        SUCCESS,
        "every QP of the PD uses it"
    );
    hold.hold();
    rig.post_send(b, bind(2, key + 1, region, 0, 64));
    let mrs = rig.engine.mrs().clone();
    let by = By {
        pd: PD,
        qpn: rig.qps[d].qpn,
    };
    let resolve = |key| mrs.resolve_remote(key, by, 4096, 1, Access::REMOTE_WRITE).err();
    until("the old key is refused", || resolve(key) == Some(KeyError::Key));
    for _ in 0..50 {
        let plain = rig.key;
        assert_eq!(write(&mut rig, c, plain, 4096), SUCCESS);
    }
    assert!(
        rig.poll_cq(b).is_none(),
        "done while a core may use the old range"
    );
    assert_eq!(mrs.binding(window), None);
    hold.release();
    assert_eq!(done(&mut rig, b), (2, SUCCESS, BOUND));
    assert_eq!(mrs.binding(window).map(|bound| bound.key), Some(key + 1));
    assert_eq!(write(&mut rig, a, key, 4096), REM_ACCESS_ERR);
    rig.engine.stop();
}

#[test]
fn a_peer_invalidates_a_window_of_its_qp_and_a_region_with_windows_is_not_invalidated() {
    let mut rig = Rig::new(1, Vec::new());
    let (a, b) = pair(&mut rig, [10, 12]);
    let (region, window) = (region(&rig), window(&rig, WindowType::Two));
    let key = window << 8 | 7;
    rig.post_recv(b, 1, &[]);
    rig.post_send(b, bind(1, key, region, 0, 64));
    assert_eq!(done(&mut rig, b), (1, SUCCESS, BOUND));
    assert!(!rig.engine.mrs().close(region), "the window holds its region");
    rig.post_send(a, naming(SEND_INV, key));
    assert_eq!(rig.wait_cqe(a).status, SUCCESS);
    let received = rig.wait_cqe(b);
    assert_eq!((received.status, received.imm_or_rkey), (SUCCESS, key));
    assert_eq!(rig.engine.mrs().binding(window), None);
    rig.post_send(b, bind(2, key, region, 0, 64));
    assert_eq!(
        done(&mut rig, b),
        (2, SUCCESS, BOUND),
        "the same key byte may be used again"
    );
    rig.post_send(b, naming(LOCAL_INV, region));
    assert_eq!(rig.wait_cqe(b).status, MW_BIND_ERR);
    assert!(rig.engine.mrs().is_valid(region));
    rig.engine.stop();
}

#[test]
fn what_a_window_may_not_be_bound_to_fails_the_bind() {
    type Wrong<'a> = &'a dyn Fn(&Rig, u32, u32) -> Wqe;
    let cases: [(WindowType, Wrong<'_>); 5] = [
        // Bound already.
        (WindowType::Two, &|_, key, region| bind(2, key, region, 0, 64)),
        (WindowType::Two, &|_, key, region| bind(2, key, region, 0, 0)),
        (WindowType::One, &|rig, key, region| {
            bind(2, key, region, rig.data.len() as u64 - 8, 64)
        }),
        // A region without the right, and one that is none.
        (WindowType::One, &|rig, key, _| bind(2, key, rig.key, 0, 64)),
        (WindowType::One, &|_, key, _| bind(2, key, key, 0, 64)),
    ];
    for (kind, wrong) in cases {
        let mut rig = Rig::new(1, Vec::new());
        let (_a, b) = pair(&mut rig, [10, 12]);
        let (region, window) = (region(&rig), window(&rig, kind));
        let key = window << 8 | 7;
        rig.post_send(b, bind(1, key, region, 0, 64));
        assert_eq!(done(&mut rig, b), (1, SUCCESS, BOUND));
        let wrong = wrong(&rig, key, region);
        rig.post_send(b, wrong);
        assert_eq!(rig.wait_cqe(b).status, MW_BIND_ERR, "{wrong:?}");
        rig.engine.stop();
    }
}

#[test]
fn flush_and_atomic_write_work_on_regions_and_windows_with_their_rights() {
    let mut rig = Rig::new(1, Vec::new());
    let (a, b) = pair(&mut rig, [10, 12]);
    let (region, window) = (region(&rig), window(&rig, WindowType::Two));
    let key = window << 8 | 1;
    rig.post_send(b, bind(1, key, region, 4096, 64));
    assert_eq!(done(&mut rig, b), (1, SUCCESS, BOUND));
    let mut inline = Wqe {
        num_sge: 0,
        flags: rnic_abi::wqe_flags::SIGNALED | rnic_abi::wqe_flags::INLINE,
        inline_len: 8,
        ..wqe(4, ATOMIC_WRITE, Sge::default(), 4096 + 8, key)
    };
    inline.sges[0].addr = u64::from_ne_bytes(*b"8 bytes!");
    rig.post_send(a, inline);
    assert_eq!(done(&mut rig, a), (4, SUCCESS, 9));
    assert_eq!(rig.bytes(4096 + 8, 8), b"8 bytes!");
    let flush = |length, selectivity, key| {
        let mut head = naming(FLUSH, 0);
        (head.remote_addr, head.rkey) = (4096, key);
        let operands = FlushOperands {
            length,
            placement: 1,
            selectivity,
            ..FlushOperands::default()
        };
        head.sges[1] = operands.into();
        head
    };
    rig.post_send(a, flush(64, 0, key));
    assert_eq!(done(&mut rig, a), (9, SUCCESS, 8));
    rig.post_send(a, flush(0, 1, key));
    assert_eq!(done(&mut rig, a), (9, SUCCESS, 8));
    // The rig's own region does not grant it.
    rig.post_send(a, flush(64, 0, rig.key));
    assert_eq!(rig.wait_cqe(a).status, REM_ACCESS_ERR);
    rig.engine.stop();
}
