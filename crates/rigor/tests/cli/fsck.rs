//! `rigor fsck`.

use rigor_queue::presence::{ComponentLock, Role};
use rigor_queue::rig::{BRAIN, Place};
use rigor_queue::task::Class;

use crate::hand_made::HandMade;

#[test]
fn it_says_what_is_wrong_and_mends_what_is_safe() {
    let made = HandMade::new();
    let queue = made.rig.dir(Place::Queue(Class::Cpu));
    let holds = made.rigor(&["fsck"]).ok();
    assert_eq!(holds.line(), "every invariant holds");
    std::fs::write(queue.join("notes.txt"), "x").unwrap();
    std::fs::write(queue.join(".new-half"), "x").unwrap();
    let told = made.rigor(&["fsck", "--dry-run", "--json"]).exits(1).json();
    assert_eq!(told["findings"].as_array().unwrap().len(), 2);
    assert_eq!(told["findings"][0]["check"], "litter");
    assert_eq!(told["findings"][1]["check"], "name");
    assert_eq!(told["mended"], 0);
    assert!(
        queue.join("notes.txt").exists(),
        "a dry run changes nothing"
    );
    let mended = made.rigor(&["fsck"]).ok().stdout;
    assert!(
        mended.ends_with("2 violations, 2 mended, 0 left\n"),
        "{mended}"
    );
    assert!(!queue.join(".new-half").exists());
    let kept = made.rig.dir(Place::Quarantine).join("notes.txt");
    assert_eq!(std::fs::read_to_string(kept).unwrap(), "x");
    let holds = made.rigor(&["fsck"]).ok();
    assert_eq!(holds.line(), "every invariant holds");
}

#[test]
fn while_a_component_runs_it_only_looks() {
    let made = HandMade::new();
    let brain = ComponentLock::acquire(&made.rig, BRAIN, Role::Running).unwrap();
    let refused = made.rigor(&["fsck"]).exits(1);
    refused.says("rigor down").says("--dry-run");
    let told = made.rigor(&["fsck", "--dry-run", "--json"]).ok().json();
    assert_eq!(told["running"][0], BRAIN);
    drop(brain);
    made.rigor(&["fsck"]).ok();
}
