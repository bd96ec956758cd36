//! Memory the allocator keeps after it was freed, given back to the kernel.
use crate::sys;

/// Lets all threads share two heaps. By default each of many threads has its own, and what few long-lived things lie in it
/// keep the rest from being given back: a daemon grows with every burst of builds. To be called before there are threads.
pub fn share_heaps() {
    sys::share_heaps(2);
}

/// Gives freed memory back, where the allocator keeps it. Takes milliseconds; for a moment at which nobody waits.
pub fn give_back_memory() {
    sys::give_back_memory();
}
