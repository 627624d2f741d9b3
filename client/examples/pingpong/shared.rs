//! Several QPs that share a receive queue, as those of ibv_srq_pingpong.
use std::time::Instant;

use anyhow::{Context as _, Result};
use rnic::{Access, Completion, ConnectOptions, Context, Cq, Mr, Mtu, Qp, QpConfig, Srq};

use crate::address::{self, Address};
use crate::{Args, FILL, RECV, SEND, report};

/// Lines that each side tells the other, however many QPs there are.
const LINES: usize = 256;

pub fn run(args: &Args) -> Result<()> {
    let side = Side::open(args)?;
    side.post_receives(args.rx_depth)?;
    let mut ours = [Address::NONE; LINES];
    for (line, qp) in ours.iter_mut().zip(&side.qps) {
        *line = Address::of(&qp.endpoint(&side.options)?);
        println!("  local address:  {line}");
    }
    let connect = |theirs: Vec<Address>| side.connect(&theirs);
    match &args.host {
        Some(host) => connect(address::ask(host, args.port, &ours)?),
        None => address::tell(args.port, &ours, connect),
    }?;
    let begin = Instant::now();
    side.play()?;
    report(args, begin.elapsed());
    args.linger()
}

struct Side<'a> {
    args: &'a Args,
    options: ConnectOptions,
    mtu: Mtu,
    qps: Vec<Qp>,
    cq: Cq,
    srq: Srq,
    /// Everything is received and sent here.
    buffer: Mr,
}

impl<'a> Side<'a> {
    fn open(args: &'a Args) -> Result<Self> {
        let mtu = Mtu::from_bytes(args.mtu)?;
        let options = args.connect_options(mtu);
        let context = Context::open(&args.socket, &args.device)?;
        let pd = context.alloc_pd()?;
        let cq = context.create_cq(args.rx_depth.saturating_add(args.num_qp.into()))?;
        let srq = pd.create_srq(args.rx_depth, 1)?;
        let qps = (0..args.num_qp).map(|_| {
            let config = QpConfig::new(&cq, &cq).srq(&srq).max_send_wr(1);
            let qp = pd.create_qp(config)?;
            qp.init(&options)?;
            anyhow::Ok(qp)
        });
        let qps = qps.collect::<Result<_>>()?;
        let buffer = pd.alloc_mr(args.size().max(1), Access::LOCAL_WRITE)?;
        buffer.write_at(0, &vec![FILL; args.size()]);
        Ok(Side {
            args,
            options,
            mtu,
            qps,
            cq,
            srq,
            buffer,
        })
    }

    fn connect(&self, theirs: &[Address]) -> Result<()> {
        for (qp, address) in self.qps.iter().zip(theirs) {
            println!("  remote address: {address}");
            qp.connect(&address.endpoint(self.mtu), &self.options)
                .context("is the other side of as many QPs (--num-qp)?")?;
        }
        Ok(())
    }

    fn post_receives(&self, count: u32) -> Result<()> {
        self.srq.post_recv(|batch| {
            for _ in 0..count {
                batch.recv(self.buffer.slice(0..self.args.size())).wr_id(RECV);
            }
        })?;
        Ok(())
    }

    fn send(&self, qp: &Qp) -> Result<()> {
        qp.post(|batch| {
            batch
                .send(self.buffer.slice(0..self.args.size()))
                .wr_id(SEND)
                .signaled();
        })?;
        Ok(())
    }

    /// All exchanges. The client begins on every QP; a QP sends when its last message is done and the answer has come,
    /// while messages of all QPs together are left.
    fn play(&self) -> Result<()> {
        let (iters, qps) = (self.args.iters, self.qps.len() as u32);
        let mut posted = self.args.rx_depth;
        let mut pending = vec![RECV; self.qps.len()];
        if self.args.host.is_some() {
            for (qp, pending) in self.qps.iter().zip(&mut pending) {
                self.send(qp)?;
                *pending = SEND | RECV;
            }
        }
        let (mut sent, mut received) = (0, 0);
        while sent < iters || received < iters {
            let mut out = [Completion::default(); 16];
            let count = self.args.next(&self.cq, &mut out);
            let count = count.with_context(|| format!("{sent} messages sent and {received} received"))?;
            for completion in &out[..count] {
                if !self.args.acknowledged(completion, received >= iters)? {
                    sent += u32::from(!completion.is_recv);
                    continue;
                }
                let done = completion;
                let at = self.qps.iter().position(|qp| qp.qpn() == done.qpn);
                let at = at.context("a completion of no QP of ours")?;
                if done.is_recv {
                    received += 1;
                    posted -= 1;
                    if posted <= qps {
                        self.post_receives(self.args.rx_depth - posted)?;
                        posted = self.args.rx_depth;
                    }
                } else {
                    sent += 1;
                }
                pending[at] &= !done.wr_id;
                if sent < iters && pending[at] == 0 {
                    self.send(&self.qps[at])?;
                    pending[at] = SEND | RECV;
                }
            }
        }
        Ok(())
    }
}
