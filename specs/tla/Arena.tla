------------------------------- MODULE Arena -------------------------------
(***************************************************************************)
(* One rank's arena: a training process fills slots, a saver reads them    *)
(* and votes; either may stop or die between any two stores.  A second     *)
(* saver may follow a dead one.  Rule 8, and what of rule 6 lies between   *)
(* two processes; what becomes of votes is in Recovery.tla.                *)
(*                                                                         *)
(* The bytes of a capture are two halves; each holds the generation that   *)
(* it is of, or 0 where it was scribbled on.                               *)
(***************************************************************************)
EXTENDS Naturals, FiniteSets

CONSTANTS
    Slots,
    MaxGen,    \* captures
    MaxSavers, \* one after the other
    LetGo,     \* TRUE: a slot is filled again only after its saver let go or died
    Reread,    \* TRUE: a saver reads the header again before it votes
    Newest,    \* TRUE: the newest complete slot is not filled
    Trust,     \* TRUE: after a death of its own doing only what was digested is used
    Again,     \* TRUE: ... and is digested again behind the write
    Rule6      \* TRUE: a vote waits for the events of its step

ASSUME MaxGen \in Nat /\ MaxSavers \in Nat

Gens == 1..MaxGen
Savers == 1..MaxSavers
None == [slot |-> "none", gen |-> 0]
Halves == {<<g, h>> : g \in 0..MaxGen, h \in 0..MaxGen}

VARIABLES
    done,     \* slot -> completion word: the generation, or 0
    data,     \* slot -> its two halves
    letgo,    \* slot -> the generation that a saver has let go of
    digest,   \* slot -> [gen, halves]: what was digested of it
    trainer,  \* [at, slot, gen]: what the training process does; at = dead, crashed
    last,     \* the last generation that was completed
    events,   \* events through this generation are committed
    saver,    \* saver -> [at, slot, gen, seen, wrote]
    votes     \* what was voted for: [gen, digest, wrote]

vars == <<done, data, letgo, digest, trainer, last, events, saver, votes>>

Lives == trainer.at \notin {"dead", "crashed"}
Hired == {v \in Savers : saver[v].at \notin {"off", "dead"}}
IsNewest(s) == \A other \in Slots : done[other] <= done[s]

-----------------------------------------------------------------------------
(* The training process.                                                   *)

Free(s) ==
    \/ done[s] = 0
    \/ /\ Newest => ~IsNewest(s)
       /\ \/ letgo[s] = done[s]
          \/ Hired = {}
          \/ ~LetGo

Begin(s) ==
    /\ trainer.at = "training" /\ trainer.gen < MaxGen /\ Free(s)
    /\ done' = [done EXCEPT ![s] = 0]
    /\ trainer' = [at |-> "cleared", slot |-> s, gen |-> trainer.gen + 1]
    /\ UNCHANGED <<data, letgo, digest, last, events, saver, votes>>

Copy(from, to, half) ==
    /\ trainer.at = from
    /\ data' = [data EXCEPT ![trainer.slot][half] = trainer.gen]
    /\ trainer' = [trainer EXCEPT !.at = to]
    /\ UNCHANGED <<done, letgo, digest, last, events, saver, votes>>

Complete ==
    /\ trainer.at = "copied"
    /\ done' = [done EXCEPT ![trainer.slot] = trainer.gen]
    /\ last' = trainer.gen
    /\ trainer' = [trainer EXCEPT !.at = "training"]
    /\ UNCHANGED <<data, letgo, digest, events, saver, votes>>

\* Its journal's thread; the event of a step is appended before its capture.
CommitEvents ==
    /\ Lives /\ events < trainer.gen
    /\ events' = events + 1
    /\ UNCHANGED <<done, data, letgo, digest, trainer, last, saver, votes>>

Killed ==
    /\ Lives
    /\ trainer' = [trainer EXCEPT !.at = "dead"]
    /\ UNCHANGED <<done, data, letgo, digest, last, events, saver, votes>>

\* Of its own doing: before it dies it may write anywhere.
Crashes(s, half) ==
    /\ Lives
    /\ trainer' = [trainer EXCEPT !.at = "crashed"]
    /\ data' = [data EXCEPT ![s][half] = 0]
    /\ UNCHANGED <<done, letgo, digest, last, events, saver, votes>>

-----------------------------------------------------------------------------
(* A saver.                                                                *)

Off == [at |-> "off", slot |-> None.slot, gen |-> 0, seen |-> <<0, 0>>, wrote |-> <<0, 0>>]
Idle == [Off EXCEPT !.at = "idle"]

\* Only a living training process hires one, and only once the last is dead.
Hire(v) ==
    /\ Lives /\ Hired = {} /\ saver[v].at = "off"
    /\ saver' = [saver EXCEPT ![v] = Idle]
    /\ UNCHANGED <<done, data, letgo, digest, trainer, last, events, votes>>

Take(v, s) ==
    /\ saver[v].at = "idle" /\ done[s] # 0 /\ letgo[s] # done[s]
    /\ saver' = [saver EXCEPT ![v] = [Idle EXCEPT !.at = "taken", !.slot = s, !.gen = done[s]]]
    /\ UNCHANGED <<done, data, letgo, digest, trainer, last, events, votes>>

\* One half after the other; the training process may act in between.
Read(v, from, to, what, half) ==
    /\ saver[v].at = from
    /\ saver' = [saver EXCEPT ![v].at = to, ![v][what][half] = data[saver[v].slot][half]]
    /\ UNCHANGED <<done, data, letgo, digest, trainer, last, events, votes>>

Known(v) == digest[saver[v].slot].gen = saver[v].gen
Still(v) == Reread => done[saver[v].slot] = saver[v].gen

Digested(v) ==
    /\ saver[v].at = "hashed"
    /\ IF \/ ~Still(v)
          \/ Trust /\ trainer.at = "crashed" /\ ~Known(v)
          \/ Known(v) /\ digest[saver[v].slot].halves # saver[v].seen
       THEN /\ saver' = [saver EXCEPT ![v].at = "leaving"]
            /\ digest' = digest
       ELSE /\ saver' = [saver EXCEPT ![v].at = "digested"]
            /\ digest' = [digest EXCEPT ![saver[v].slot] =
                            [gen |-> saver[v].gen, halves |-> saver[v].seen]]
    /\ UNCHANGED <<done, data, letgo, trainer, last, events, votes>>

Vote(v) ==
    /\ saver[v].at = "written"
    /\ (Rule6 /\ Lives) => events >= saver[v].gen  \* else it waits
    /\ IF /\ Still(v)
          /\ Rule6 => events >= saver[v].gen
          /\ (Again /\ trainer.at = "crashed") => data[saver[v].slot] = saver[v].seen
       THEN votes' = votes \cup
                {[gen |-> saver[v].gen, digest |-> saver[v].seen, wrote |-> saver[v].wrote]}
       ELSE votes' = votes
    /\ saver' = [saver EXCEPT ![v].at = "leaving"]
    /\ UNCHANGED <<done, data, letgo, digest, trainer, last, events>>

Release(v) ==
    /\ saver[v].at = "leaving"
    /\ letgo' = [letgo EXCEPT ![saver[v].slot] = saver[v].gen]
    /\ saver' = [saver EXCEPT ![v] = Idle]
    /\ UNCHANGED <<done, data, digest, trainer, last, events, votes>>

SaverDies(v) ==
    /\ v \in Hired
    /\ saver' = [saver EXCEPT ![v] = [Off EXCEPT !.at = "dead"]]
    /\ UNCHANGED <<done, data, letgo, digest, trainer, last, events, votes>>

-----------------------------------------------------------------------------

Init ==
    /\ done = [s \in Slots |-> 0]
    /\ data = [s \in Slots |-> <<0, 0>>]
    /\ letgo = [s \in Slots |-> 0]
    /\ digest = [s \in Slots |-> [gen |-> 0, halves |-> <<0, 0>>]]
    /\ trainer = [at |-> "training", slot |-> None.slot, gen |-> 0]
    /\ last = 0 /\ events = 0
    /\ saver = [v \in Savers |-> Off]
    /\ votes = {}

Next ==
    \/ \E s \in Slots : Begin(s)
    \/ Copy("cleared", "half", 1)
    \/ Copy("half", "copied", 2)
    \/ Complete
    \/ CommitEvents
    \/ Killed
    \/ \E s \in Slots, half \in {1, 2} : Crashes(s, half)
    \/ \E v \in Savers :
        \/ Hire(v)
        \/ \E s \in Slots : Take(v, s)
        \/ Read(v, "taken", "hashing", "seen", 1)
        \/ Read(v, "hashing", "hashed", "seen", 2)
        \/ Digested(v)
        \/ Read(v, "digested", "writing", "wrote", 1)
        \/ Read(v, "writing", "written", "wrote", 2)
        \/ Vote(v)
        \/ Release(v)
        \/ SaverDies(v)

Spec == Init /\ [][Next]_vars

-----------------------------------------------------------------------------

TypeOK ==
    /\ \A s \in Slots : done[s] \in 0..MaxGen /\ data[s] \in Halves /\ letgo[s] \in 0..MaxGen
    /\ \A v \in votes : v.gen \in Gens

\* What is voted for is what was captured, digest and bytes.
VotesAreWhole == \A v \in votes : v.digest = <<v.gen, v.gen>> /\ v.wrote = v.digest

\* Whenever the training process dies, the last complete capture is there.
LastIsThere == last > 0 => \E s \in Slots : done[s] = last

\* Behind a vote the journal has no hole.
JournalBehindVote == \A v \in votes : v.gen <= events

=============================================================================
