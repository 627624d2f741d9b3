//! Selective retransmission between two appliances whose link loses frames.
use std::time::Duration;

use rnic::{Access, ConnectOptions, Context, Cq, Mr, Qp, QpConfig};
use rnic_tests::{Appliance, PortSetup, Setup, Turn};

const SOON: Option<Duration> = Some(Duration::from_secs(60));
const MESSAGE: usize = 1 << 20;
/// Messages on their way at a time, each with a place of its own.
const PLACES: usize = 4;

/// Two appliances on a shared-memory link on which each frame in fifty is lost.
fn appliances(dir: &tempfile::TempDir) -> [Appliance; 2] {
    let socket = dir.path().join("memif.sock");
    [(0, "server"), (1, "client")].map(|(number, role)| {
        let faults = format!("faults: {{ seed: {number}, rx: {{ drop: 2% }} }}");
        let port = PortSetup::memif(number, role, &socket).with(&faults);
        Appliance::start(&Setup::new([port.with("congestion: off")]))
    })
}

struct End {
    qp: Qp,
    cq: Cq,
    own: Mr,
    open: Mr,
}

impl End {
    fn new(context: &Context) -> End {
        let pd = context.alloc_pd().unwrap();
        let cq = context.create_cq(64).unwrap();
        let access = Access::LOCAL_WRITE | Access::REMOTE_WRITE;
        End {
            qp: pd.create_qp(QpConfig::new(&cq, &cq).sq_sig_all(true)).unwrap(),
            own: pd.alloc_mr(PLACES * MESSAGE, Access::LOCAL_WRITE).unwrap(),
            open: pd.alloc_mr(PLACES * MESSAGE, access).unwrap(),
            cq,
        }
    }

    fn connect(&self, peer: &End, ours: &ConnectOptions, theirs: &ConnectOptions) {
        let endpoint = peer.qp.endpoint(theirs).unwrap();
        self.qp.connect(&endpoint, ours).unwrap();
    }

    /// WRITEs everything to the peer, so many times over.
    fn write_all(&self, peer: &End, times: usize) {
        for turn in 0..times {
            let bytes: Vec<u8> = (0..PLACES * MESSAGE)
                .map(|at| (at / 251 + at + 7 * turn) as u8)
                .collect();
            self.own.write_at(0, &bytes);
            let remote = peer.open.remote();
            let posted = self.qp.post(|batch| {
                for place in (0..PLACES * MESSAGE).step_by(MESSAGE) {
                    batch.write(self.own.slice(place..place + MESSAGE), remote.at(place as u64));
                }
            });
            assert_eq!(posted.unwrap(), PLACES);
            for _ in 0..PLACES {
                let done = self.cq.wait_vec(1, SOON).unwrap();
                done.first().expect("in time").ok().unwrap();
            }
            assert!(peer.open.read_vec(0, bytes.len()) == bytes, "turn {turn}");
        }
    }
}

/// Frames sent again of 32 MiB in each direction, of 16,384 in all.
fn retransmitted(ours: bool, theirs: bool) -> u64 {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let appliances = appliances(&dir);
    let [a, b] = [&appliances[0], &appliances[1]].map(|appliance| End::new(&appliance.open("rnic0")));
    let [ours, theirs] = [ours, theirs].map(|selective_retransmit| ConnectOptions {
        selective_retransmit,
        timeout: 12,
        ..ConnectOptions::default()
    });
    a.connect(&b, &ours, &theirs);
    b.connect(&a, &theirs, &ours);
    let agreed = ours.selective_retransmit && theirs.selective_retransmit;
    for end in [&a, &b] {
        assert_eq!(end.qp.query().unwrap().selective_retransmit, agreed);
    }
    a.write_all(&b, 8);
    b.write_all(&a, 8);
    drop([a, b]);
    let sum = appliances
        .iter()
        .map(|appliance| appliance.counter("retransmitted"))
        .sum();
    for appliance in appliances {
        appliance.stop();
    }
    sum
}

#[test]
fn what_both_ends_offer_is_done_and_few_frames_are_sent_again() {
    let _turn = Turn::take();
    let selective = retransmitted(true, true);
    println!("selective: {selective} frames sent again of 16,384");
    // One in fifty of them, and of their acknowledgements, is lost.
    assert!(
        (164..2_000).contains(&selective),
        "{selective} frames were sent again"
    );
}

#[test]
fn what_one_end_offers_alone_is_not_done() {
    let _turn = Turn::take();
    let go_back = retransmitted(true, false);
    println!("go-back-N: {go_back} frames sent again");
    assert!(go_back > 2_000, "{go_back} frames were sent again");
}
