//! Owns: one-way boxes from workers to a plain thread that looks into them now and then.
//! Never: a bell, a wait, a lock: a worker that puts something in has nothing more to do with it.
//! Next: `blocking`, work for which a thread may wait.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rtrb::{Consumer, Producer, RingBuffer};

/// A box for each of `workers`, of at most `capacity` things that weigh at most `weight_max`
/// together; and the one end that takes from all of them.
pub fn outlets<T: Send>(
    workers: usize,
    capacity: usize,
    weight_max: usize,
) -> (Vec<Outlet<T>>, Basin<T>) {
    let mut outlets = Vec::with_capacity(workers);
    let mut pipes = Vec::with_capacity(workers);
    for _ in 0..workers {
        let (put, take) = RingBuffer::new(capacity);
        let weight = Arc::new(AtomicUsize::new(0));
        outlets.push(Outlet { put: RefCell::new(put), weight: weight.clone(), weight_max });
        pipes.push((take, weight));
    }
    (outlets, Basin { pipes })
}

/// One worker's box.
pub struct Outlet<T> {
    put: RefCell<Producer<(usize, T)>>,
    weight: Arc<AtomicUsize>,
    weight_max: usize,
}

impl<T> Outlet<T> {
    /// Puts something in; false, and it is dropped, if it does not fit or nobody takes any more.
    pub fn put(&self, thing: T, weight: usize) -> bool {
        let mut put = self.put.borrow_mut();
        let held = self.weight.load(Ordering::Relaxed);
        if put.is_abandoned() || held.saturating_add(weight) > self.weight_max {
            return false;
        }
        self.weight.fetch_add(weight, Ordering::Relaxed);
        let fits = put.push((weight, thing)).is_ok();
        if !fits {
            self.weight.fetch_sub(weight, Ordering::Relaxed);
        }
        fits
    }
}

/// Where all boxes end.
pub struct Basin<T> {
    pipes: Vec<Pipe<T>>,
}

/// The other end of an outlet, and what it holds.
type Pipe<T> = (Consumer<(usize, T)>, Arc<AtomicUsize>);

impl<T> Basin<T> {
    /// Takes up to `most` things, those of each worker in their order; how many.
    pub fn take(&mut self, most: usize, mut take: impl FnMut(T)) -> usize {
        let mut taken = 0;
        for (pipe, held) in &mut self.pipes {
            while taken < most {
                let Ok((weight, thing)) = pipe.pop() else { break };
                held.fetch_sub(weight, Ordering::Relaxed);
                take(thing);
                taken += 1;
            }
        }
        taken
    }

    /// Whether no worker can put anything in any more; what it has put in may still be there.
    pub fn is_abandoned(&self) -> bool {
        self.pipes.iter().all(|(pipe, _)| pipe.is_abandoned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_dropped_and_room_comes_back() {
        let (outlets, mut basin) = outlets::<&str>(2, 2, 10);
        assert!(outlets[0].put("a", 4));
        assert!(!outlets[0].put("too heavy", 7));
        assert!(outlets[0].put("b", 6));
        assert!(outlets[1].put("c", 10));
        let mut seen = Vec::new();
        assert_eq!(basin.take(2, |thing| seen.push(thing)), 2);
        assert!(outlets[0].put("d", 5));
        assert!(outlets[0].put("e", 5));
        assert!(!outlets[0].put("no place", 0));
        drop(outlets);
        assert!(basin.is_abandoned());
        assert_eq!(basin.take(10, |thing| seen.push(thing)), 3);
        assert_eq!(seen, ["a", "b", "d", "e", "c"]);
    }
}
