"""The words of the captions, as data: `captions` puts them together.

Slots in braces are filled from the facts: {side}, {number} (two), {count} (2), {organ}, {bone},
{zone}, {sequence}, {stain}, {measure}, {other}, {treatment}, {share}.
"""

KIND_NAMES: dict[str, tuple[str, ...]] = {
    "chest radiograph": (
        "chest radiograph", "posteroanterior chest radiograph", "frontal chest X-ray",
        "chest X-ray", "plain chest film", "PA chest radiograph",
    ),
    "bone radiograph": (
        "radiograph of the {side} {organ}", "plain X-ray of the {side} {organ}",
        "X-ray image of the {side} {organ}", "anteroposterior radiograph of the {side} {organ}",
    ),
    "head CT": (
        "head CT", "axial non-contrast CT of the head", "cranial computed tomography (CT)",
        "unenhanced brain CT scan", "CT scan of the brain",
    ),
    "abdominal CT": (
        "abdominal CT", "contrast-enhanced CT of the abdomen", "axial abdominal CT scan",
        "computed tomography (CT) of the upper abdomen", "portal venous phase CT of the abdomen",
    ),
    "brain MRI": (
        "axial {sequence}-weighted brain MRI", "brain MRI, axial {sequence} sequence",
        "{sequence} magnetic resonance image (MRI) of the brain",
        "axial {sequence} MRI of the head",
    ),
    "H&E histology": (
        "H&E-stained section of the {organ}",
        "haematoxylin and eosin (H&E) staining of the {organ}",
        "histology of the {organ} (H&E)", "photomicrograph of an H&E-stained {organ} biopsy",
        "histopathological section of the {organ}, hematoxylin-eosin stain",
    ),
    "immunohistochemistry": (
        "immunohistochemistry for Ki-67 in breast tissue",
        "Ki-67 immunostaining of a breast biopsy",
        "immunohistochemical staining of breast carcinoma for Ki-67 (DAB, brown)",
    ),
    "fluorescence micrograph": (
        "fluorescence microscopy of cultured cells", "confocal fluorescence micrograph of cells",
        "immunofluorescence image of cultured cells", "fluorescence micrograph of adherent cells",
    ),
    "electron micrograph": (
        "{technique} electron micrograph", "{technique} electron microscopy ({tem}) image",
        "{tem} micrograph", "{technique} electron microscopy",
    ),
    "bar chart": ("bar chart", "bar graph", "bar plot"),
    "line graph": ("line graph", "time course", "line plot"),
    "scatter plot": ("scatter plot", "scatterplot"),
    "Kaplan-Meier curve": (
        "Kaplan-Meier survival curves", "Kaplan-Meier plot", "Kaplan-Meier curves",
    ),
    "box plot": ("box plot", "box-and-whisker plot", "boxplots"),
}  # fmt: skip

# The first phrase of each finding is also the one that closed questions are put with.
FINDINGS: dict[tuple[str, str], tuple[str, ...]] = {
    ("chest radiograph", "normal"): (
        "normal findings", "clear lungs and a normal heart", "no abnormality",
        "normal lungs and a normal cardiac silhouette",
    ),
    ("chest radiograph", "pulmonary nodule"): (
        "a {side} pulmonary nodule", "a solitary nodule in the {zone} zone of the {side} lung",
        "a round {side} lung nodule",
        "a well-defined pulmonary nodule in the {side} {zone} lung field",
    ),
    ("chest radiograph", "pleural effusion"): (
        "a {side} pleural effusion", "a {side}-sided pleural effusion with a meniscus",
        "a large pleural effusion on the {side}",
        "blunting of the {side} costophrenic angle by a pleural effusion",
    ),
    ("chest radiograph", "pneumothorax"): (
        "a {side} pneumothorax", "a {side}-sided pneumothorax with a collapsed lung",
        "a large pneumothorax on the {side}", "{side} pneumothorax with a visible pleural line",
    ),
    ("chest radiograph", "consolidation"): (
        "{side} consolidation", "consolidation of the {zone} zone of the {side} lung",
        "a patchy {side} lung consolidation consistent with pneumonia",
        "airspace consolidation in the {side} {zone} lung field",
    ),
    ("chest radiograph", "cardiomegaly"): (
        "cardiomegaly", "an enlarged heart (cardiomegaly)", "marked cardiomegaly with clear lungs",
        "cardiomegaly with an increased cardiothoracic ratio",
    ),
    ("bone radiograph", "normal"): (
        "normal bones", "no fracture", "intact bones with a normal cortex",
        "no fracture or dislocation",
    ),
    ("bone radiograph", "fracture"): (
        "a fracture", "a displaced fracture of the {bone}", "a fracture of the {bone}",
        "a complete fracture of the {bone} with displacement",
    ),
    ("head CT", "normal"): (
        "normal findings", "a normal brain", "no intracranial abnormality",
        "no haemorrhage or infarct",
    ),
    ("head CT", "intracerebral haemorrhage"): (
        "a {side} intracerebral haemorrhage", "a hyperdense {side} intraparenchymal hemorrhage",
        "an acute intracerebral hemorrhage in the {side} hemisphere",
        "a {side}-sided intracerebral haemorrhage with perifocal oedema",
    ),
    ("head CT", "subdural haematoma"): (
        "a {side} subdural haematoma", "a crescent-shaped {side} subdural hematoma",
        "an acute subdural haematoma on the {side} with midline shift",
        "a {side}-sided hyperdense subdural hematoma",
    ),
    ("head CT", "ischaemic infarct"): (
        "a {side} ischaemic infarct", "a hypodense {side} middle cerebral artery infarct",
        "an ischemic infarct in the {side} middle cerebral artery territory",
        "a {side}-sided ischaemic infarct with loss of grey-white differentiation",
    ),
    ("abdominal CT", "normal"): (
        "normal findings", "normal abdominal organs",
        "no focal abnormality of the liver or kidneys",
    ),
    ("abdominal CT", "liver lesion"): (
        "{number} liver {lesions}", "{number} hypodense liver {lesions}",
        "{number} focal hepatic {lesions}",
        "{number} low-attenuation {lesions} in the liver",
    ),
    ("abdominal CT", "renal cyst"): (
        "a {side} renal cyst", "a simple cyst of the {side} kidney", "a large {side} renal cyst",
        "a water-density cyst arising from the {side} kidney",
    ),
    ("abdominal CT", "kidney stone"): (
        "a {side} kidney stone", "a calculus in the {side} kidney", "{side} nephrolithiasis",
        "a hyperdense stone in the {side} renal pelvis",
    ),
    ("brain MRI", "normal"): (
        "normal findings", "a normal brain", "no focal lesion",
        "no mass or white matter abnormality",
    ),
    ("brain MRI", "brain tumour"): (
        "a {side} brain tumour", "a {side} hemispheric tumor with surrounding oedema",
        "a mass in the {side} hemisphere with perifocal edema",
        "a {side}-sided glioma with a necrotic core",
    ),
    ("brain MRI", "white matter lesions"): (
        "{number} white matter lesions", "{number} hyperintense white matter lesions",
        "{number} demyelinating lesions of the white matter",
        "{number} bright periventricular white matter lesions",
    ),
    ("H&E histology", "normal"): (
        "normal tissue", "normal {organ} architecture", "no pathological change",
        "unremarkable {tissue}",
    ),
    ("H&E histology", "inflammation"): (
        "inflammation", "a dense lymphocytic infiltrate between the crypts",
        "chronic colitis with inflammation of the lamina propria",
        "inflamed mucosa rich in lymphocytes",
    ),
    ("H&E histology", "adenocarcinoma"): (
        "adenocarcinoma", "crowded malignant glands of an adenocarcinoma",
        "moderately differentiated adenocarcinoma",
        "invasive adenocarcinoma with irregular glands",
    ),
    ("H&E histology", "dysplasia"): (
        "dysplasia", "high-grade dysplasia of the squamous epithelium",
        "full-thickness squamous dysplasia (CIN 3)",
        "severe dysplasia with loss of maturation",
    ),
    ("H&E histology", "steatosis"): (
        "steatosis", "macrovesicular steatosis",
        "fatty change with many lipid droplets (steatosis)",
        "hepatic steatosis with fat vacuoles",
    ),
    ("immunohistochemistry", "high Ki-67"): (
        "a high Ki-67 index", "a high Ki-67 labelling index of {share}%",
        "strong nuclear staining in {share}% of tumour cells (high Ki-67)",
        "many Ki-67-positive brown nuclei",
    ),
    ("immunohistochemistry", "low Ki-67"): (
        "a low Ki-67 index", "a low Ki-67 labelling index of {share}%",
        "nuclear staining in only {share}% of tumour cells (low Ki-67)",
        "few Ki-67-positive brown nuclei",
    ),
    ("fluorescence micrograph", "interphase"): (
        "cells in interphase", "interphase cells with intact nuclei",
        "{amount} interphase cells", "{count} cells, all in interphase",
    ),
    ("fluorescence micrograph", "mitosis"): (
        "a cell in mitosis", "a mitotic cell with condensed chromosomes",
        "one dividing cell (mitosis) among {count} cells",
        "mitosis in one of {amount} cells",
    ),
    ("fluorescence micrograph", "apoptosis"): (
        "an apoptotic cell", "apoptosis with a fragmented nucleus",
        "one apoptotic cell with nuclear fragmentation among {count} cells",
        "apoptosis in one of {amount} cells",
    ),
    ("electron micrograph", "normal mitochondria"): (
        "normal mitochondria", "{count} mitochondria with regular cristae",
        "{number} intact mitochondria with parallel cristae",
    ),
    ("electron micrograph", "swollen mitochondria"): (
        "swollen mitochondria", "{count} swollen mitochondria with disrupted cristae",
        "{number} swollen, pale mitochondria with loss of cristae",
    ),
    ("electron micrograph", "synaptic vesicles"): (
        "synaptic vesicles", "a synapse with clustered synaptic vesicles",
        "a presynaptic terminal filled with synaptic vesicles",
        "synaptic vesicles opposite a postsynaptic density",
    ),
    ("electron micrograph", "rough endoplasmic reticulum"): (
        "rough endoplasmic reticulum", "stacked cisternae of the rough endoplasmic reticulum",
        "rough endoplasmic reticulum studded with ribosomes",
    ),
    ("electron micrograph", "virus particles"): (
        "virus particles", "{count} negatively stained virus particles",
        "{count} virus particles with surface spikes",
        "enveloped virions (virus particles) with a crown of spikes",
    ),
    ("electron micrograph", "rod-shaped bacteria"): (
        "rod-shaped bacteria", "{count} rod-shaped bacteria", "bacilli (rod-shaped bacteria)",
        "{count} rod-shaped bacterial cells",
    ),
    ("electron micrograph", "cocci"): (
        "cocci", "{count} spherical bacteria (cocci)", "round bacterial cocci", "{count} cocci",
    ),
}  # fmt: skip

# Plots state a relation, so their findings are whole clauses.
CLAUSES: dict[str, tuple[str, ...]] = {
    "increase": (
        "{treatment} increased {measure}",
        "{measure} was higher in the {treatment} group than in controls",
        "increase of {measure} with {treatment}",
    ),
    "decrease": (
        "{treatment} reduced {measure}",
        "{measure} was lower in the {treatment} group than in controls",
        "decrease of {measure} with {treatment}",
    ),
    "no difference": (
        "no difference between {treatment} and control", "{treatment} and control did not differ",
        "no significant difference with {treatment} compared with control",
    ),
    "positive correlation": (
        "positive correlation between {other} and {measure}",
        "{measure} was positively correlated with {other}",
        "{measure} rose with {other} (positive correlation)",
    ),
    "negative correlation": (
        "negative correlation between {other} and {measure}",
        "{measure} was negatively correlated with {other}",
        "{measure} fell with {other} (negative correlation)",
    ),
    "no correlation": (
        "no correlation between {other} and {measure}", "{measure} was not correlated with {other}",
        "{measure} showed no correlation with {other}",
    ),
    "longer survival": (
        "longer survival with {treatment}", "{treatment} prolonged survival",
        "survival was longer in the {treatment} group than in controls",
    ),
    "shorter survival": (
        "shorter survival with {treatment}", "{treatment} shortened survival",
        "survival was shorter in the {treatment} group than in controls",
    ),
}  # fmt: skip

STAINS: dict[str, tuple[str, ...]] = {
    "nuclei": (
        "nuclei stained with DAPI", "DAPI-stained nuclei only", "nuclear staining (Hoechst)",
    ),
    "actin": (
        "actin in red (phalloidin) and nuclei in blue (DAPI)",
        "F-actin stress fibres (red) and DNA (blue)",
    ),
    "mitochondria": (
        "mitochondria in green and nuclei in blue (DAPI)",
        "the mitochondrial network (green) and DNA (blue)",
    ),
}  # fmt: skip

LEADS: dict[str, tuple[str, ...]] = {
    "radiology": (
        "{What} showing {finding}.",
        "{What} demonstrating {finding}.",
        "{What} of a {age}-year-old {person} with {finding}.",
        "{What} in a {age}-year-old {person} revealed {finding}.",
        "{Finding} on {what}.",
        "{Finding} in a {age}-year-old {person} ({what}).",
        "{What}: {finding}.",
        "A {age}-year-old {person} presented with {complaint}; {what} shows {finding}.",
        "{What} obtained {when} shows {finding}.",
        "Initial {what} with {finding}.",
    ),
    "microscopy": (
        "{What} showing {finding}.",
        "{What} with {finding}.",
        "{Finding} in {what}.",
        "{What}: {finding}.",
        "Representative {what} demonstrating {finding}.",
        "{Finding}, {what}.",
        "{What} revealed {finding}.",
    ),
    "plot": (
        "{What}: {finding}.",
        "{Finding} ({what}).",
        "{Finding}; {what}.",
        "{What} of {measure}. {Finding}.",
        "{What} showing that {finding}.",
    ),
}

COMPLAINTS: dict[str, tuple[str, ...]] = {
    "chest radiograph": ("cough", "dyspnoea", "chest pain", "fever", "shortness of breath"),
    "bone radiograph": ("pain after a fall", "swelling", "a sports injury"),
    "head CT": ("headache", "confusion", "a fall", "sudden weakness"),
    "abdominal CT": ("abdominal pain", "weight loss", "flank pain", "nausea"),
    "brain MRI": ("seizures", "headache", "blurred vision", "numbness"),
}
PERSONS = ("man", "woman", "male patient", "female patient", "patient")
TIMES = ("on admission", "at follow-up", "in the emergency department", "before treatment")

MARKED = {
    "arrow": ("The arrow points to the finding.", "Finding indicated by the arrow.", "(arrow)"),
    "scale bar": (
        "Scale bar, {bar}.", "Scale bar: {bar}.", "Bar = {bar}.", "Scale bar represents {bar}.",
    ),
    "letter": ("Image in radiological convention.", "The letter marks the side of the patient."),
}  # fmt: skip
REMARKS: dict[str, tuple[str, ...]] = {
    "radiology": (
        "The patient gave informed consent for publication.",
        "The examination was repeated after {days} days.",
        "Images were reviewed by two radiologists who were blinded to the clinical data.",
        "The patient was haemodynamically stable at the time of imaging.",
        "No prior imaging was available for comparison.",
        "Laboratory values were within the reference range.",
        "The patient recovered and was discharged after {days} days.",
    ),
    "CT": (
        "Slice thickness was {slice} mm.", "Images were acquired at {kv} kVp.",
        "Window settings were adjusted for soft tissue.",
    ),
    "MRI": (
        "Images were acquired at {tesla} T.", "Slice thickness was {slice} mm.",
        "Repetition and echo times are given in the Methods.",
    ),
    "histology": (
        "Original magnification ×{power}.", "Sections were cut at {slice} µm from paraffin blocks.",
        "Magnification, ×{power}.", "Tissue was fixed in 10% formalin.",
        "Slides were digitised with a whole-slide scanner.",
    ),
    "fluorescence microscopy": (
        "Cells were fixed in 4% paraformaldehyde.",
        "Images were acquired with a 63× oil objective.",
        "Maximum intensity projection of {slice} optical sections.",
        "Images are representative of {replicates} independent experiments.",
    ),
    "electron microscopy": (
        "Samples were fixed in 2.5% glutaraldehyde.", "Accelerating voltage, {kv} kV.",
        "Images are representative of {replicates} independent experiments.",
    ),
    "plot": (
        "Data are mean ± SEM of n = {animals} per group.",
        "Error bars show the standard deviation.",
        "Statistical analysis by two-sided t test.", "*P < 0.05, **P < 0.01, ***P < 0.001.",
        "Source data are provided with this paper.",
    ),
    "compound": (
        "Images are representative of {replicates} independent experiments.",
        "Panels are described in the text.", "All procedures followed the local guidelines.",
    ),
}  # fmt: skip
SYNTHETIC = (
    "Synthetic image.", "All data are simulated.",
    "The picture was generated by a computer program.",
    "Phantom image.",
)  # fmt: skip
