//! Forged work requests: each fails with a status and a cause, and takes nothing but its QP along.
use rnic_abi::{Wqe, wqe_flags};
use rnic_tests::Turn;
use rnic_tests::probe::Rng;
use rnic_tests::raw::write;

mod villain;
use villain::{BASE, LEN, PATHS, Villain, receive, scene};

type Forge = fn(&mut Wqe);

/// What is forged, how, and the status it must have (`enum ibv_wc_status`); 0 is any but success.
const SENDS: &[(&str, Forge, u8)] = &[
    (
        "an address that wraps",
        |w| (w.sges[0].addr, w.sges[0].length) = (u64::MAX - 10, 100),
        4,
    ),
    ("an address before the region", |w| w.sges[0].addr = BASE - 1, 4),
    (
        "an end behind the region",
        |w| w.sges[0].addr = BASE + LEN as u64 - 99,
        4,
    ),
    ("a length of four gigabytes", |w| w.sges[0].length = u32::MAX, 0),
    ("a length of two gigabytes", |w| w.sges[0].length = 1 << 31, 0),
    ("a key of another slot", |w| w.sges[0].lkey ^= 0x100, 4),
    ("a key of another generation", |w| w.sges[0].lkey ^= 1, 4),
    ("no key", |w| w.sges[0].lkey = 0, 4),
    ("the largest key", |w| w.sges[0].lkey = u32::MAX, 4),
    ("33 entries", |w| w.num_sge = 33, 2),
    ("255 entries", |w| w.num_sge = 255, 2),
    ("more entries than units", |w| w.num_sge = 9, 2),
    (
        "inline bytes beyond the limit",
        |w| (w.flags, w.inline_len) = (wqe_flags::INLINE, u32::MAX),
        2,
    ),
    ("inline bytes beyond the units", |w| inline(w, 300), 2),
    (
        "inline and entries",
        |w| (w.flags, w.inline_len) = (wqe_flags::INLINE, 8),
        2,
    ),
    ("inline without the flag", |w| w.inline_len = 8, 2),
    ("an inline READ", |w| (inline(w, 8), w.opcode = 4).1, 2),
    ("unknown flags", |w| w.flags = 0xF0, 2),
    ("an unknown opcode", |w| w.opcode = 200, 2),
    ("an operation that is not built", |w| w.opcode = 8, 2),
    ("a compare and swap of 100 bytes", |w| w.opcode = 5, 2),
    (
        "a fetch and add into two entries",
        |w| (atomic(w), w.num_sge = 2).0,
        2,
    ),
    ("an inline fetch and add", |w| (inline(w, 8), w.opcode = 6).0, 2),
    (
        "an atomic without a place for its result",
        |w| (atomic(w), w.num_sge = 0).0,
        2,
    ),
    (
        "an atomic on no multiple of 8",
        |w| (atomic(w), w.remote_addr += 4).0,
        9,
    ),
    (
        "an atomic across the region's end",
        |w| (atomic(w), w.remote_addr = BASE + LEN as u64).0,
        10,
    ),
    (
        "an atomic result into a foreign key",
        |w| (atomic(w), w.sges[0].lkey ^= 1).0,
        4,
    ),
    (
        "a remote address that wraps",
        |w| w.remote_addr = u64::MAX - 10,
        10,
    ),
    (
        "a remote address before the region",
        |w| w.remote_addr = BASE - 1,
        10,
    ),
    (
        "a remote end behind the region",
        |w| w.remote_addr = BASE + LEN as u64 - 99,
        10,
    ),
    ("a remote key of another slot", |w| w.rkey ^= 0x100, 10),
    ("a remote key of another generation", |w| w.rkey ^= 1, 10),
    ("no remote key", |w| w.rkey = 0, 10),
];

/// The same for receives, which a message of 100 bytes meets.
const RECEIVES: &[(&str, Forge, u8)] = &[
    ("an address that wraps", |w| w.sges[0].addr = u64::MAX - 10, 4),
    (
        "an end behind the region",
        |w| w.sges[0].addr = BASE + LEN as u64 - 99,
        4,
    ),
    ("a key of another generation", |w| w.sges[0].lkey ^= 1, 4),
    ("no key", |w| w.sges[0].lkey = 0, 4),
    ("room for less than the message", |w| w.sges[0].length = 99, 1),
    ("255 entries", |w| w.num_sge = 255, 0),
    ("a length of four gigabytes", |w| w.sges[0].length = u32::MAX, 0),
    ("inline bytes", |w| inline(w, 32), 0),
    ("flags", |w| w.flags = 0xFF, 0),
];

fn atomic(wqe: &mut Wqe) {
    (wqe.opcode, wqe.sges[0].length) = (6, 8);
}

fn inline(wqe: &mut Wqe, len: u32) {
    (wqe.flags, wqe.inline_len, wqe.num_sge) = (wqe_flags::INLINE, len, 0);
}

#[test]
fn every_forged_field_of_a_send_fails_with_a_status_and_a_cause() {
    let _turn = Turn::take();
    for path in PATHS {
        let scene = scene(1, path);
        for (what, forge, status) in SENDS {
            let mut villain = Villain::enter(&scene);
            let mut wqe = villain.write(7, 100);
            forge(&mut wqe);
            villain.post(&wqe);
            println!("{what}");
            let done = villain.own.completion();
            assert_eq!(done.wr_id, 7, "{what}: {done:?}");
            assert_ne!(done.status, 0, "{what} succeeded");
            assert!(*status == 0 || done.status == *status, "{what}: {done:?}");
            assert_ne!(done.cause.check, 0, "{what}: without a cause: {done:?}");
            villain.assert_fails(what);
            // What is posted later is flushed.
            villain.post(&villain.write(8, 100));
            let flushed = villain.own.completion();
            assert_eq!((flushed.wr_id, flushed.status), (8, 5), "{what}: {flushed:?}");
        }
        scene.end();
    }
}

#[test]
fn every_forged_field_of_a_receive_fails_when_a_message_meets_it() {
    let _turn = Turn::take();
    for path in PATHS {
        let scene = scene(1, path);
        for (what, forge, status) in RECEIVES {
            let mut villain = Villain::enter(&scene);
            let mut wqe = receive(7, 100, villain.mr.lkey);
            forge(&mut wqe);
            villain.own.post(&villain.qp, villain.qp.rq, &wqe);
            villain.receive_from_peer(100);
            println!("{what}");
            let done = villain.own.completion();
            assert_eq!(done.wr_id, 7, "{what}: {done:?}");
            assert_ne!(done.status, 0, "{what} succeeded");
            assert!(*status == 0 || done.status == *status, "{what}: {done:?}");
            // The sender is told that the receiver could not: invalid request, or operational error.
            let at_sender = villain.peer.completion();
            assert!([9, 11].contains(&at_sender.status), "{what}: {at_sender:?}");
            villain.assert_fails(what);
        }
        scene.end();
    }
}

#[test]
fn a_work_request_without_an_end_takes_its_qp_along() {
    let _turn = Turn::take();
    let scene = scene(1, "wire");
    // Where the next request begins cannot be known: the QP fails without a completion for this one.
    for units in [0, 2, 16, 255] {
        let mut villain = Villain::enter(&scene);
        villain.post(&Wqe {
            units,
            ..villain.write(7, 100)
        });
        villain.assert_fails(&format!("{units} units"));
        assert!(villain.own.poll().is_none_or(|done| done.status != 0));
    }
    scene.end();
}

#[test]
fn keys_of_others_open_nothing() {
    let _turn = Turn::take();
    let scene = scene(1, "wire");
    let mut villain = Villain::enter(&scene);
    // The peer's own region, named by its owner's local key.
    villain.post(&write(
        1,
        BASE,
        64,
        villain.target.lkey,
        BASE,
        villain.target.rkey,
    ));
    let done = villain.own.completion();
    assert_eq!((done.wr_id, done.status), (1, 4), "{done:?}");
    drop(villain);
    scene.end();
}

#[test]
fn random_work_requests_end_in_completions_or_in_a_failed_qp() {
    let _turn = Turn::take();
    for path in PATHS {
        let mut scene = scene(2, path);
        let mut rng = Rng::new(&[15]);
        for round in 0..80 {
            let villain = Villain::enter(&scene);
            for queue in [villain.qp.rq, villain.qp.sq] {
                for _ in 0..8 {
                    let mut wqe = villain.write(rng.next(), 1 + rng.below(3000) as u32);
                    wqe.opcode = [0, 1, 2, 3, 4, 5, 6, 9][rng.below(8)];
                    let bytes = zerocopy::IntoBytes::as_mut_bytes(&mut wqe);
                    for _ in 0..rng.below(4) {
                        let at = rng.below(bytes.len());
                        bytes[at] = rng.next() as u8;
                    }
                    villain.own.post(&villain.qp, queue, &wqe);
                }
            }
            villain.receive_from_peer(100);
            if round % 10 == 0 {
                scene.bystanders.check();
            }
        }
        scene.end();
    }
}
