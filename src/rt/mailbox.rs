//! Owns: mail between threads: a ring per pair of sender and receiver, a bell per receiver.
//! Never: shared state; what mail means; waiting for room.
//! Next: `outlet`, the way to threads that look by themselves.
//!
//! The bell costs a system call, so it is rung only when the receiver sleeps. Both sides first
//! write (the mail; "asleep") and then read what the other wrote, with a sequentially consistent
//! fence between: at least one of them sees the other, so no mail waits beside a sleeper.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::rc::Weak;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::task::{Poll, Waker};

use rtrb::{Consumer, Producer, RingBuffer};

use super::bell::{Bell, Breath};
use crate::limits;

/// One bell per receiver, on its own cache lines: the flag is looked at for every mail.
#[repr(align(128))]
struct Door {
    asleep: AtomicBool,
    bell: Bell,
}

impl Door {
    /// Called after mail was put into the box.
    fn knock(&self) {
        fence(Ordering::SeqCst);
        // Looked at before it is swapped: the receiver is mostly awake, and a plain load leaves
        // the line shared. The swap lets one of several senders ring.
        if self.asleep.load(Ordering::Relaxed) && self.asleep.swap(false, Ordering::Relaxed) {
            self.bell.ring();
        }
    }
}

/// Boxes of `capacity` mails from everyone to every worker, itself included. Senders are numbered:
/// the workers first, then the outsiders, who only send.
///
/// # Errors
/// Those of eventfd, such as too many open files.
#[expect(clippy::type_complexity, reason = "a pair of lists, taken apart at once")]
pub fn mesh<T: Send>(
    workers: usize,
    outsiders: usize,
    capacity: usize,
) -> io::Result<(Vec<Seat<T>>, Vec<Outbox<T>>)> {
    let doors = (0..workers)
        .map(|_| Ok(Arc::new(Door { asleep: AtomicBool::new(false), bell: Bell::new()? })))
        .collect::<io::Result<Vec<_>>>()?;
    let mut inboxes: Vec<Vec<Consumer<T>>> = doors.iter().map(|_| Vec::new()).collect();
    let mut outboxes = (0..workers + outsiders).map(|_| {
        let slots = doors.iter().zip(&mut inboxes).map(|(door, inbox)| {
            let (put, take) = RingBuffer::new(capacity);
            inbox.push(take);
            Slot { mail: RefCell::new(put), door: door.clone(), silent: Cell::new(false) }
        });
        Outbox { slots: slots.collect(), postman: RefCell::new(None) }
    });
    let of_workers: Vec<_> = outboxes.by_ref().take(workers).collect();
    let of_outsiders = outboxes.collect();
    let seats = of_workers
        .into_iter()
        .zip(inboxes.into_iter().zip(doors))
        .map(|(outbox, (mail, door))| Seat { outbox, inbox: Inbox { mail, door } })
        .collect();
    Ok((seats, of_outsiders))
}

/// A worker's place in the mesh.
pub struct Seat<T> {
    /// Mail to every worker.
    pub outbox: Outbox<T>,
    /// Mail from everyone.
    pub inbox: Inbox<T>,
}

struct Slot<T> {
    mail: RefCell<Producer<T>>,
    door: Arc<Door>,
    /// Mail was put there that no bell was rung for.
    silent: Cell<bool>,
}

/// One sender's boxes: may move to a thread, and is used by one thread.
pub struct Outbox<T> {
    slots: Vec<Slot<T>>,
    /// Who rings the bells, if they are rung for several mails at once.
    postman: RefCell<Option<Waker>>,
}

impl<T> Outbox<T> {
    /// Puts mail into the box of worker `to`. Never waits.
    ///
    /// # Errors
    /// The mail, if the box is full, the worker is gone, or there is no such worker.
    pub fn send(&self, to: usize, mail: T) -> Result<(), T> {
        let Some(slot) = self.slots.get(to) else { return Err(mail) };
        let mut put = slot.mail.borrow_mut();
        if put.is_abandoned() {
            return Err(mail);
        }
        put.push(mail).map_err(|rtrb::PushError::Full(mail)| mail)?;
        drop(put);
        match &*self.postman.borrow() {
            Some(_) if slot.silent.replace(true) => {}
            Some(postman) => postman.wake_by_ref(),
            None => {
                slot.silent.set(false);
                slot.door.knock();
            }
        }
        Ok(())
    }

    /// Whether the next mail to worker `to` will find room.
    pub fn has_room(&self, to: usize) -> bool {
        self.slots.get(to).is_some_and(|slot| {
            let put = slot.mail.borrow();
            !put.is_full() && !put.is_abandoned()
        })
    }

    /// From now on bells are rung by this task, which takes its turn behind those that write mail:
    /// a receiver wakes once for all that they have written. Without it every mail rings at once,
    /// if the receiver sleeps. Ends with the outbox.
    pub async fn deliver(outbox: Weak<Outbox<T>>) {
        poll_fn(|cx| {
            let Some(outbox) = outbox.upgrade() else { return Poll::Ready(()) };
            let old = outbox.postman.borrow_mut().replace(cx.waker().clone());
            drop(old);
            for slot in &outbox.slots {
                if slot.silent.replace(false) {
                    slot.door.knock();
                }
            }
            Poll::Pending
        })
        .await;
    }

    /// Workers that can be written to.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether there is nobody to write to.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }
}

impl<T> Drop for Outbox<T> {
    fn drop(&mut self) {
        for Slot { mail, door, .. } in self.slots.drain(..) {
            drop(mail); // only then can the receiver see that this sender is gone
            door.knock();
        }
    }
}

/// One worker's mail.
pub struct Inbox<T> {
    mail: Vec<Consumer<T>>,
    door: Arc<Door>,
}

impl<T> Inbox<T> {
    /// Hands every mail to `handle` with the number of its sender: in order for each sender, and
    /// taking one of each sender in turn. After [`limits::MAIL_BATCH`] mails the other tasks of the
    /// worker run. Ends when every sender, the worker's own outbox included, is gone.
    ///
    /// # Errors
    /// Those of eventfd and of the waits for it: the worker can hear no mail any more.
    pub async fn serve(mut self, mut handle: impl FnMut(usize, T)) -> io::Result<()> {
        let listening = self.door.bell.listen()?;
        let mut breath = Breath::new()?;
        loop {
            if self.take(limits::MAIL_BATCH, &mut handle) == limits::MAIL_BATCH {
                breath.take().await;
                continue;
            }
            self.door.asleep.store(true, Ordering::Relaxed);
            fence(Ordering::SeqCst);
            // What came in before the flag was up rang no bell.
            if self.mail.iter().any(|from| !from.is_empty()) {
                self.door.asleep.store(false, Ordering::Relaxed);
                continue;
            }
            if self.mail.iter().all(Consumer::is_abandoned) {
                fence(Ordering::Acquire); // is_abandoned alone does not order the last mails
                // Sent before it was abandoned, and perhaps after the look above.
                self.take(usize::MAX, &mut handle);
                return Ok(());
            }
            // A bell rung for mail that was taken above ends this wait early, once.
            listening.heard().await?;
            self.door.asleep.store(false, Ordering::Relaxed);
        }
    }

    /// Takes up to `most` mails; fewer only if no more wait.
    fn take(&mut self, most: usize, handle: &mut impl FnMut(usize, T)) -> usize {
        let mut taken = 0;
        loop {
            let before = taken;
            for (from, mail) in self.mail.iter_mut().enumerate() {
                if taken == most {
                    return taken;
                }
                if let Ok(mail) = mail.pop() {
                    handle(from, mail);
                    taken += 1;
                }
            }
            if taken == before {
                return taken;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rt::testing::everywhere;
    use crate::rt::{Driver, spawn, time};
    use std::rc::Rc;
    use std::time::Duration;

    const MAILS: u64 = 1_000_000;

    /// Sends it however long the box is full.
    fn press<T>(outbox: &Outbox<T>, to: usize, mut mail: T) {
        while let Err(back) = outbox.send(to, mail) {
            mail = back;
            std::thread::yield_now();
        }
    }

    /// Now in floods, now one at a time to a sleeping receiver: all arrive, in order.
    #[test]
    fn a_million_mails_arrive_in_order() {
        everywhere(async || {
            let (mut seats, outsiders) = mesh::<u64>(2, 1, 1024).unwrap();
            let other = seats.pop().unwrap().outbox;
            let Seat { outbox, inbox } = seats.pop().unwrap();
            drop(outbox);
            let senders: Vec<_> = outsiders
                .into_iter()
                .chain([other])
                .map(|outbox| {
                    std::thread::spawn(move || {
                        for n in 0..MAILS / 2 {
                            press(&outbox, 0, n);
                            if n % 50_000 < 3 {
                                // Long enough for the receiver to fall asleep.
                                std::thread::sleep(Duration::from_millis(2));
                            }
                        }
                    })
                })
                .collect();
            let mut next = [0u64; 3];
            let served = inbox.serve(|from, n| {
                assert_eq!(n, next[from], "from {from}");
                next[from] += 1;
            });
            served.await.unwrap();
            assert_eq!(next, [0, MAILS / 2, MAILS / 2]);
            for sender in senders {
                sender.join().unwrap();
            }
        });
    }

    /// One system call for what was written in one turn, and none before its end.
    #[test]
    fn a_postman_rings_once_for_all_mail_of_a_turn() {
        everywhere(async || {
            let (mut seats, _) = mesh::<u32>(1, 0, 8).unwrap();
            let Seat { outbox, inbox } = seats.pop().unwrap();
            let outbox = Rc::new(outbox);
            spawn("bells", Outbox::deliver(Rc::downgrade(&outbox)));
            let mut breath = Breath::new().unwrap();
            breath.take().await;
            let listening = inbox.door.bell.listen().unwrap();
            for round in 0..3 {
                inbox.door.asleep.store(true, Ordering::SeqCst);
                outbox.send(0, round).unwrap();
                outbox.send(0, round).unwrap();
                assert!(inbox.door.asleep.load(Ordering::SeqCst), "rung within the turn");
                listening.heard().await.unwrap();
                assert!(!inbox.door.asleep.load(Ordering::SeqCst));
            }
            drop(outbox);
            let mut mails = Vec::new();
            inbox.serve(|_, mail| mails.push(mail)).await.unwrap();
            assert_eq!(mails, [0, 0, 1, 1, 2, 2]);
        });
    }

    #[test]
    fn mail_crosses_between_workers_and_back() {
        let (seats, outsiders) = mesh::<u32>(2, 0, 8).unwrap();
        assert!(outsiders.is_empty());
        let (driver, _) = Driver::choose(None).unwrap();
        let workers: Vec<_> = seats
            .into_iter()
            .enumerate()
            .map(|(me, Seat { outbox, inbox })| {
                std::thread::spawn(move || {
                    driver.run(async move {
                        assert_eq!(outbox.len(), 2);
                        if me == 0 {
                            outbox.send(1, 1).unwrap();
                        }
                        let mut outbox = Some(outbox);
                        let mut last = 0;
                        let served = inbox.serve(|from, n| {
                            assert_eq!(from, 1 - me);
                            last = n;
                            // Nobody sends after 10,000: the outboxes are dropped, serving ends.
                            if n < 10_000 {
                                outbox.as_ref().unwrap().send(from, n + 1).unwrap();
                            }
                            if n >= 9_999 {
                                outbox = None;
                            }
                        });
                        served.await.unwrap();
                        last
                    })
                })
            })
            .collect();
        let last: Vec<_> = workers.into_iter().map(|w| w.join().unwrap().unwrap()).collect();
        assert_eq!(last, [10_000, 9_999]);
    }

    #[test]
    fn full_gone_and_unknown_boxes_give_the_mail_back() {
        let (mut seats, outsiders) = mesh::<u8>(1, 1, 2).unwrap();
        let outbox = &outsiders[0];
        assert_eq!(outbox.send(0, 1), Ok(()));
        assert_eq!(outbox.send(0, 2), Ok(()));
        assert_eq!(outbox.send(0, 3), Err(3));
        assert_eq!(outbox.send(1, 4), Err(4));
        seats.clear();
        assert_eq!(outbox.send(0, 5), Err(5));
    }

    /// A box that never runs empty must not keep the worker from its timers.
    #[test]
    fn mail_without_end_does_not_starve_timers() {
        everywhere(async || {
            let Seat { outbox, inbox } = mesh(1, 0, limits::MAILBOX_LEN).unwrap().0.pop().unwrap();
            for n in 0..4 * limits::MAIL_BATCH {
                outbox.send(0, n).unwrap();
            }
            let outbox = std::rc::Rc::new(RefCell::new(Some(outbox)));
            let again = outbox.clone();
            spawn("timer", async move {
                for _ in 0..10 {
                    time::sleep(Duration::from_millis(1)).await;
                }
                *outbox.borrow_mut() = None;
            });
            let serve = inbox.serve(|_, n| {
                // Every mail comes back at once, until the timer has fired.
                if let Some(outbox) = &*again.borrow() {
                    outbox.send(0, n).unwrap();
                }
            });
            serve.await.unwrap();
        });
    }
}
