"""The web page: widgets only. Streamlit runs this file anew for each change on the page."""

import dataclasses
import hashlib
import io
import sys
from pathlib import Path

import streamlit as st

from agr_lightning.images import EXTENSIONS
from agr_lightning.inference.annotate import draw
from agr_lightning.inference.photos import Photo, PhotoOptions, PhotoReader
from agr_lightning.inference.predict import TableWriter, rows_of
from agr_lightning.inference.predictor import Answer, Predictor

# How many photos are not looked at again when the page changes; their pictures take up to 12 MB each.
KEPT = 32

PURPOSE = """
It says what a network has learnt from how people judged some 19,000 photos: **apparent** age, one of two genders,
and one of five coarse race labels, of which the last is everyone else. It does not know who somebody is.

- Good for: trying a network out, labelling one's own collection roughly, seeing where it is wrong.
- Not for: decisions about people, checking an age, or finding out what somebody would not tell.
- Children, people above 70, and the label *others* come out worst; the model card has the figures by group.
- Nothing that is uploaded is stored: photos stay in this machine's memory until the page is closed.
"""


@st.cache_resource(show_spinner="Loading the network …")
def load(ckpt_path: str | None) -> tuple[Predictor, PhotoReader]:
    """The network, and what reads photos for it."""
    predictor = Predictor.load(ckpt_path)
    return predictor, PhotoReader(PhotoOptions(), predictor.image_size, True, predictor.of_cards)


def verbatim(text: str) -> str:
    """Markdown that shows a text as it is: links and images in the name of a file are not followed."""
    return f"`{' '.join(text.split()).replace('`', chr(39))}`"


def show(name: str, photo: Photo, answers: list[Answer]) -> None:
    """Shows a photo with boxes, and a table of its faces."""
    st.subheader(verbatim(name))
    if photo.problem is not None:
        st.error(f"This file cannot be used: {verbatim(photo.problem)}.")
        return
    if not answers:
        st.warning("No face was found in this photo. A larger or more frontal face may help.")
    st.image(draw(photo, answers))
    if answers:
        faces = "one face" if len(answers) == 1 else f"{len(answers)} faces, the largest first"
        st.caption(f"Found {faces}; the age with the interval that holds 80 % of labels.")
        st.table([cells(face, answer) for face, answer in enumerate(answers)])


def cells(face: int, answer: Answer) -> dict[str, str]:
    """A row of the table."""
    row = {"Face": f"#{face}"}
    if answer.age is not None:
        interval = "" if answer.age_low is None else f" ({answer.age_low:.0f} to {answer.age_high:.0f})"
        row["Age"] = f"{answer.age:.0f} years{interval}"
    if answer.prob_under_18 is not None:
        row["Under 18"] = f"{answer.prob_under_18:.0%}"
    for task, classes in answer.ranked.items():
        row[task.title()] = ", ".join(f"{name} {value:.0%}" for name, value in classes if value >= 0.05)
    if answer.face_probability is not None:
        row["Face probability"] = f"{answer.face_probability:.0%}"
    return row


# Without an icon: Streamlit's are fetched from elsewhere.
st.set_page_config("Age, gender and race")
st.title("Age, gender and race")
predictor, reader = load(sys.argv[1] if len(sys.argv) > 1 else None)
with st.sidebar:
    with_race = st.toggle("Show race", value=True)
    with_camera = st.toggle("Use the camera", value=False)
    st.caption(f"Network: {verbatim(predictor.source)}")
uploads = list(st.file_uploader("Photos", sorted(EXTENSIONS), accept_multiple_files=True) or [])
if with_camera and (shot := st.camera_input("A photo from the camera")):
    uploads.append(shot)
table = TableWriter(csv := io.BytesIO(), "csv")
keys = [(upload.name, hashlib.sha256(upload.getvalue()).digest()) for upload in uploads]
kept = {key: found for key, found in st.session_state.get("kept", {}).items() if key in keys}
st.session_state["kept"] = kept  # not in Streamlit's caches, which outlive the page
for key, upload in zip(keys, uploads, strict=True):
    if key in kept:
        photo, answers = kept[key]
    else:
        with st.spinner("Looking for faces …"):
            (photo,) = reader.read(Path(upload.name), upload.getvalue())
            answers = photo.answers(predictor(photo.crops))
    if len(kept) < KEPT:
        kept[key] = photo, answers
    if not with_race:
        answers = [dataclasses.replace(answer, races=None) for answer in answers]
    show(upload.name, photo, answers)
    table.write(rows_of(photo, answers))
if uploads:
    st.download_button("Download the table", csv.getvalue(), "predictions.csv", "text/csv")
with st.expander("What this is for, and what not", expanded=not uploads):
    st.markdown(PURPOSE)
