//! Memory windows, FLUSH and ATOMIC WRITE through the client library, on a whole appliance.
use std::time::Duration;

use rnic::{
    Access, Completion, ConnectOptions, Context, Cq, Error, MemoryWindow, Mr, Opcode, Pd, Qp, QpConfig,
    RemoteAddr, Status, WindowType,
};
use rnic_tests::{Appliance, Setup, Turn};

const PATHS: [&str; 2] = ["wire", "direct"];
const SOON: Option<Duration> = Some(Duration::from_secs(20));

fn appliance(path: &str) -> Appliance {
    let setup = Setup::back_to_back().cores(2);
    Appliance::start(&setup.with_ports(&format!("loopback: {path}")))
}

/// One end of a connection, with memory for windows.
struct End {
    qp: Qp,
    cq: Cq,
    memory: Mr,
    pd: Pd,
}

impl End {
    fn new(context: &Context) -> End {
        let pd = context.alloc_pd().unwrap();
        let cq = context.create_cq(64).unwrap();
        let rights = Access::LOCAL_WRITE | Access::MW_BIND | Access::FLUSH_GLOBAL;
        End {
            qp: pd
                .create_qp(QpConfig::new(&cq, &cq).sq_sig_all(true).max_inline(16))
                .unwrap(),
            memory: pd.alloc_mr(8192, rights).unwrap(),
            cq,
            pd,
        }
    }

    fn next(&self) -> Completion {
        self.cq.wait_vec(1, SOON).unwrap().remove(0)
    }

    /// Connected ends on both devices.
    fn pair(appliance: &Appliance) -> [End; 2] {
        let [a, b] = ["rnic0", "rnic1"].map(|device| End::new(&appliance.open(device)));
        a.connect(&b);
        b.connect(&a);
        [a, b]
    }

    fn connect(&self, peer: &End) {
        let options = ConnectOptions {
            access: Access::REMOTE_READ | Access::REMOTE_WRITE | Access::FLUSH_GLOBAL,
            ..ConnectOptions::default()
        };
        let endpoint = peer.qp.endpoint(&options).unwrap();
        self.qp.connect(&endpoint, &options).unwrap();
    }

    /// Binds, or unbinds, and sees it done.
    fn bind(&self, window: &MemoryWindow, range: std::ops::Range<usize>) -> RemoteAddr {
        let local = self.memory.slice(range);
        let access = Access::REMOTE_WRITE | Access::REMOTE_READ | Access::FLUSH_GLOBAL;
        self.qp
            .post(|batch| {
                batch.bind(window, &local, access).wr_id(1);
            })
            .unwrap();
        let done = self.next();
        assert_eq!((done.ok().unwrap().wr_id, done.opcode), (1, Opcode::BindMw));
        window.remote().unwrap().into()
    }

    fn write(&self, bytes: &[u8], to: RemoteAddr) -> Status {
        self.qp
            .post(|batch| {
                batch.write_inline(bytes, to);
            })
            .unwrap();
        self.next().status
    }
}

#[test]
fn peers_use_windows_as_they_are_bound_and_not_when_they_are_unbound() {
    let _turn = Turn::take();
    for path in PATHS {
        let appliance = appliance(path);
        for kind in [WindowType::One, WindowType::Two] {
            let [a, b] = End::pair(&appliance);
            let window = b.pd.alloc_mw(kind).unwrap();
            let first = b.bind(&window, 4096..4196);
            assert_eq!(a.write(b"through", first), Status::Success);
            assert_eq!(b.memory.read_vec(4096, 7), b"through");
            if kind == WindowType::Two {
                b.qp.post(|batch| {
                    batch.local_invalidate(first.rkey);
                })
                .unwrap();
                assert_eq!(b.next().ok().unwrap().opcode, Opcode::LocalInvalidate);
            }
            let second = b.bind(&window, 0..64);
            assert_ne!(first.rkey, second.rkey);
            assert_eq!(a.write(b"again", second), Status::Success);
            let shown = appliance.ctl_json(&["res", "show", "mw"]);
            assert!(shown.to_string().contains("bound"), "{shown}");
            assert_eq!(a.write(b"old key", first), Status::RemoteAccess);
        }
        appliance.stop();
    }
}

#[test]
fn a_window_of_type_1_is_unbound_by_a_bind_to_nothing_and_its_region_is_free_then() {
    let _turn = Turn::take();
    let appliance = appliance("direct");
    let [a, b] = End::pair(&appliance);
    let window = b.pd.alloc_mw(WindowType::One).unwrap();
    let bound = b.bind(&window, 0..64);
    let End { qp, cq, memory, pd } = b;
    let busy = memory.clone().deregister().unwrap_err();
    assert!(matches!(busy, Error::Busy(_)), "{busy}");
    qp.post(|batch| {
        batch.unbind(&window);
    })
    .unwrap();
    cq.wait_vec(1, SOON).unwrap().remove(0).ok().unwrap();
    assert_eq!(window.remote(), None);
    memory.deregister().unwrap();
    assert_eq!(a.write(b"gone", bound), Status::RemoteAccess);
    drop((window, qp, pd));
    appliance.stop();
}

#[test]
fn what_is_flushed_was_written_and_an_atomic_write_comes_whole() {
    let _turn = Turn::take();
    for path in PATHS {
        let appliance = appliance(path);
        let [a, b] = End::pair(&appliance);
        let window = b.pd.alloc_mw(WindowType::Two).unwrap();
        let to = b.bind(&window, 0..4096);
        let ready = RemoteAddr {
            addr: to.addr + 4088,
            ..to
        };
        a.memory.write_at(0, &[0xAB; 3000]);
        a.qp.post(|batch| {
            batch.write(a.memory.slice(..3000), to);
            batch.flush(to, 3000);
            batch.atomic_write(*b"finished", ready);
            batch.flush_region(to.rkey);
        })
        .unwrap();
        let done: Vec<_> = (0..4).map(|_| a.next().ok().unwrap().opcode).collect();
        use Opcode::{AtomicWrite, Flush, Write};
        assert_eq!(done, [Write, Flush, AtomicWrite, Flush]);
        assert_eq!(b.memory.read_vec(0, 3000), [0xAB; 3000]);
        assert_eq!(b.memory.read_vec(4088, 8), b"finished");
        let unaligned = RemoteAddr {
            addr: to.addr + 4,
            ..to
        };
        a.qp.post(|batch| {
            batch.atomic_write([0; 8], unaligned);
        })
        .unwrap();
        assert_eq!(a.next().status, Status::RemoteInvalidRequest);
        appliance.stop();
    }
}
