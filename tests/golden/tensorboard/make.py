"""The events of the test in src/pipeline/tensorboard.rs, written by TensorBoard's own classes, and a reader.

usage: make.py OUT                 writes the golden file
       make.py --read FOLDER       prints what TensorBoard reads in a folder of event files, as JSON

Needs tensorboard (2.21). The reader is how files of `s2c-pipe tensorboard` were compared with the losses in the cache.
"""
import json
import sys

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

EVENTS = [("loss/cls", 0, 0.625), ("lr", 0, 0.01), ("loss/cls", 127, -1.5), ("loss/cls", 128, 1e-30),
          ("miou/seed", 1000000, 52.1)]


def write(path):
    with open(path, "wb") as file:
        records = RecordWriter(file)
        records.write(Event(wall_time=1.7e9, file_version="brain.Event:2").SerializeToString())
        for tag, step, value in EVENTS:
            summary = Summary(value=[Summary.Value(tag=tag, simple_value=value)])
            records.write(Event(wall_time=1.7e9 + step / 8, step=step, summary=summary).SerializeToString())


def read(folder):
    found = EventAccumulator(folder, size_guidance={"scalars": 0})
    found.Reload()
    tags = found.Tags()["scalars"]
    print(json.dumps({tag: [[event.step, event.wall_time, event.value] for event in found.Scalars(tag)] for tag in tags}))


if sys.argv[1] == "--read":
    read(sys.argv[2])
else:
    write(sys.argv[1])
